#include "runtime/data/tokenizer_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_map>

#include "runtime/error.h"
#include "runtime/json.h"

namespace transxssm {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;  // for writing: reading large objects into it is quadratic

constexpr int64_t kMaxBytes = int64_t{64} << 20;
constexpr int kMaxDepth = 32;
constexpr int64_t kMaxValues = 4'000'000;
constexpr int64_t max_id = (1 << 22) - 1;  // tables are as long as the highest id

// What readers of merges as text pass over.
bool is_comment(std::string_view merge) {
  return merge.starts_with("#version");
}

// Reads one file; every refusal names the file and the JSON path, and quotes words of the file as
// printable().
class Parser {
 public:
  Parser(const std::string& name, TokenizerSpec& spec) : name_(name), spec_(spec) {}

  void parse(std::string_view text) {
    const Json root = parse_json<DataError>(
        text, name_, {.max_bytes = kMaxBytes, .max_depth = kMaxDepth, .max_values = kMaxValues});
    object(root, "the file",
           {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
            "post_processor", "decoder", "model"});
    null_or_absent(root, "truncation", "truncation");
    null_or_absent(root, "padding", "padding");
    if (!root.contains("model")) refuse("model", "is missing");
    model(root["model"]);
    added_tokens(root.value("added_tokens", Json::array()));
    normalizer(root.value("normalizer", Json()));
    pre_tokenizer(root.value("pre_tokenizer", Json()));
    decoder(root.value("decoder", Json()));
    const Json post = root.value("post_processor", Json());
    post_processor(post, "post_processor");
    spec_.post_processor = post.dump();
  }

 private:
  [[noreturn]] void refuse(const std::string& path, const std::string& reason) const {
    throw DataError("{}: {} {}.", name_, path, reason);
  }

  // An object with no other keys than these: an unknown key may change the ids.
  void object(const Json& json, const std::string& path, const std::set<std::string>& keys) const {
    if (!json.is_object()) refuse(path, "must be an object");
    for (const auto& [key, value] : json.items()) {
      if (!keys.contains(key))
        refuse(path, fmt::format("has the field '{}', which is not supported", printable(key)));
    }
  }

  template <class T>
  T get(const Json& json, const std::string& key, const std::string& path) const {
    const auto found = json.find(key);
    if (found == json.end()) refuse(path + "." + key, "is missing");
    return convert<T>(*found, path + "." + key);
  }

  template <class T>
  T get_or(const Json& json, const std::string& key, const std::string& path, T absent) const {
    return json.contains(key) ? get<T>(json, key, path) : absent;
  }

  template <class T>
  T convert(const Json& json, const std::string& path) const {
    if constexpr (std::is_same_v<T, bool>) {
      if (!json.is_boolean()) refuse(path, "must be true or false");
    } else if constexpr (std::is_same_v<T, int32_t>) {
      if (!json.is_number_integer() || json < 0 || json > max_id) {
        refuse(path, fmt::format("must be an id from 0 to {}", max_id));
      }
    } else {
      if (!json.is_string()) refuse(path, "must be a string");
    }
    return json.get<T>();
  }

  // Null where there is no object, or no such member of it.
  static const Json* member(const Json* json, const std::string& key) {
    if (json == nullptr || !json->is_object()) return nullptr;
    const auto found = json->find(key);
    return found == json->end() ? nullptr : &*found;
  }

  void null_or_absent(const Json& json, const std::string& key, const std::string& path) const {
    if (json.contains(key) && !json[key].is_null()) refuse(path, "must be null: it is not supported");
  }

  void must_be(const Json& json, const std::string& key, const std::string& path, bool wanted) const {
    if (get_or(json, key, path, wanted) != wanted) {
      refuse(path + "." + key, fmt::format("must be {}: anything else is not supported", wanted));
    }
  }

  std::string type_of(const Json& json, const std::string& path) const {
    if (!json.is_object()) refuse(path, "must be an object");
    return get<std::string>(json, "type", path);
  }

  void model(const Json& json) {
    object(json, "model",
           {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
            "byte_fallback", "ignore_merges", "vocab", "merges"});
    const auto type = get_or<std::string>(json, "type", "model", "BPE");
    if (type != "BPE") refuse("model.type", fmt::format("is '{}'; only BPE is supported", printable(type)));
    null_or_absent(json, "dropout", "model.dropout");
    null_or_absent(json, "unk_token", "model.unk_token");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (json.contains(key) && json[key] != "") null_or_absent(json, key, std::string("model.") + key);
    }
    must_be(json, "fuse_unk", "model", false);
    must_be(json, "byte_fallback", "model", false);
    spec_.ignore_merges = get_or(json, "ignore_merges", "model", false);
    vocab(json);
    merges(json);
  }

  void vocab(const Json& json) {
    if (!json.contains("vocab") || !json["vocab"].is_object()) refuse("model.vocab", "must be an object");
    for (const auto& [token, id] : json["vocab"].items()) {
      spec_.vocab.emplace_back(token,
                               convert<int32_t>(id, fmt::format("model.vocab['{}']", printable(token))));
    }
    std::stable_sort(spec_.vocab.begin(), spec_.vocab.end(),
                     [](const auto& a, const auto& b) { return a.second < b.second; });
    for (const auto& [token, id] : spec_.vocab) ids_.emplace(token, id);
  }

  int32_t merge_part(const std::string& token, const std::string& path) const {
    const auto found = ids_.find(token);
    if (found == ids_.end())
      refuse(path, fmt::format("uses '{}', which is not in model.vocab", printable(token)));
    return found->second;
  }

  void merges(const Json& json) {
    if (!json.contains("merges") || !json["merges"].is_array()) refuse("model.merges", "must be an array");
    std::vector<std::pair<int32_t, int32_t>> all;
    int64_t index = -1;
    for (const Json& merge : json["merges"]) {
      const std::string path = fmt::format("model.merges[{}]", ++index);
      std::string left, right;
      if (merge.is_string()) {
        const auto& text = merge.get_ref<const std::string&>();
        if (is_comment(text)) continue;
        const size_t space = text.find(' ');
        if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
          refuse(path, "must be two tokens with one space between them");
        }
        left = text.substr(0, space);
        right = text.substr(space + 1);
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
        left = merge[0];
        right = merge[1];
      } else {
        refuse(path, "must be 'a b' or ['a', 'b']");
      }
      all.emplace_back(merge_part(left, path), merge_part(right, path));
      merge_part(left + right, path);
    }
    spec_.merges = without_earlier_duplicates(all);
  }

  void added_tokens(const Json& json) {
    if (!json.is_array()) refuse("added_tokens", "must be an array");
    for (const Json& token : json) {
      const std::string path = fmt::format("added_tokens[{}]", spec_.added_tokens.size());
      object(token, path, {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
      must_be(token, "single_word", path, false);
      must_be(token, "lstrip", path, false);
      must_be(token, "rstrip", path, false);
      spec_.added_tokens.push_back({.content = get<std::string>(token, "content", path),
                                    .id = get<int32_t>(token, "id", path),
                                    .normalized = get<bool>(token, "normalized", path),
                                    .special = get<bool>(token, "special", path)});
    }
  }

  void normalizer(const Json& json) {
    if (json.is_null()) return;
    const auto type = type_of(json, "normalizer");
    if (type != "NFC")
      refuse("normalizer.type", fmt::format("is '{}'; only NFC or null is supported", printable(type)));
    spec_.nfc = true;
  }

  void byte_level(const Json& json, const std::string& path) {
    const auto type = type_of(json, path);
    if (type != "ByteLevel")
      refuse(path + ".type", fmt::format("is '{}'; only ByteLevel is supported here", printable(type)));
    object(json, path, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
    spec_.add_prefix_space = get<bool>(json, "add_prefix_space", path);
    spec_.use_regex = get_or(json, "use_regex", path, true);
  }

  void split(const Json& json, const std::string& path) {
    object(json, path, {"type", "pattern", "behavior", "invert"});
    const auto regex = json.value("pattern", Json());
    if (!regex.is_object() || regex.size() != 1 || !regex.contains("Regex")) {
      refuse(path + ".pattern", "must be {\"Regex\": ...}");
    }
    spec_.split = pattern_of_regex(get<std::string>(regex, "Regex", path + ".pattern"));
    if (!spec_.split)
      refuse(path + ".pattern.Regex", "is neither the pattern of GPT-2 nor that of cl100k and Llama-3");
    const auto behavior = get<std::string>(json, "behavior", path);
    const bool invert = get<bool>(json, "invert", path);
    spec_.split_removed = behavior == "Removed";
    if (!(behavior == "Isolated" && !invert) && !(behavior == "Removed" && invert)) {
      refuse(path + ".behavior", "must be Isolated, or Removed with invert");
    }
  }

  void pre_tokenizer(const Json& json) {
    if (type_of(json, "pre_tokenizer") != "Sequence") return byte_level(json, "pre_tokenizer");
    spec_.split_sequence = true;
    object(json, "pre_tokenizer", {"type", "pretokenizers"});
    const std::string path = "pre_tokenizer.pretokenizers";
    const Json parts = json.value("pretokenizers", Json());
    if (!parts.is_array() || parts.empty() || parts.size() > 2)
      refuse(path, "must be [ByteLevel] or [Split, ByteLevel]");
    if (parts.size() == 2) {
      const auto type = type_of(parts[0], path + "[0]");
      if (type != "Split")
        refuse(path + "[0].type", fmt::format("is '{}'; only Split is supported here", printable(type)));
      split(parts[0], path + "[0]");
    }
    byte_level(parts.back(), fmt::format("{}[{}]", path, parts.size() - 1));
  }

  void decoder(const Json& json) const {
    if (json.is_null()) return;
    const auto type = type_of(json, "decoder");
    if (type != "ByteLevel")
      refuse("decoder.type", fmt::format("is '{}'; only ByteLevel is supported", printable(type)));
  }

  void post_processor(const Json& json, const std::string& path) {
    if (json.is_null()) return;
    const auto type = type_of(json, path);
    if (type == "ByteLevel") return;  // concerns offsets only
    if (type == "TemplateProcessing") return post_template(json, path);
    if (type != "Sequence" || !json.contains("processors") || !json["processors"].is_array()) {
      refuse(path + ".type",
             fmt::format("is '{}'; only ByteLevel, TemplateProcessing and a Sequence of them are "
                         "supported",
                         printable(type)));
    }
    size_t index = 0;
    for (const Json& part : json["processors"])
      post_processor(part, fmt::format("{}.processors[{}]", path, index++));
  }

  void post_template(const Json& json, const std::string& path) {
    if (std::exchange(has_template_, true)) refuse(path, "is a second TemplateProcessing");
    object(json, path, {"type", "single", "pair", "special_tokens"});
    bool text_seen = false;
    const Json single = json.value("single", Json());
    if (!single.is_array()) refuse(path + ".single", "must be an array");
    for (const Json& item : single) {
      const std::string item_path = path + ".single";
      if (item.is_object() && item.size() == 1 && item.contains("Sequence")) {
        const bool second = std::exchange(text_seen, true);
        if (second || get<std::string>(item["Sequence"], "id", item_path) != "A") {
          refuse(item_path, "must hold the sequence A once");
        }
      } else if (item.is_object() && item.size() == 1 && item.contains("SpecialToken")) {
        const auto id = get<std::string>(item["SpecialToken"], "id", item_path);
        template_token(json, id, path, text_seen ? spec_.template_suffix : spec_.template_prefix);
      } else {
        refuse(item_path, "must hold Sequence and SpecialToken items");
      }
    }
    if (!text_seen) refuse(path + ".single", "must hold the sequence A once");
  }

  void template_token(const Json& json, const std::string& id, const std::string& path,
                      std::vector<int32_t>& ids) {
    const std::string token_path = fmt::format("{}.special_tokens['{}'].ids", path, printable(id));
    const Json* list = member(member(member(&json, "special_tokens"), id), "ids");
    if (list == nullptr || !list->is_array()) refuse(token_path, "must be an array of ids");
    for (const Json& value : *list) ids.push_back(convert<int32_t>(value, token_path));
  }

  const std::string& name_;
  TokenizerSpec& spec_;
  std::unordered_map<std::string, int32_t> ids_;
  bool has_template_ = false;
};

OrderedJson byte_level_json(bool add_prefix_space, bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", add_prefix_space},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

OrderedJson pre_tokenizer_json(const TokenizerSpec& spec) {
  const OrderedJson byte_level = byte_level_json(spec.add_prefix_space, spec.use_regex);
  if (!spec.split_sequence && !spec.split) return byte_level;
  OrderedJson parts = OrderedJson::array();
  if (spec.split) {
    parts.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", pattern_regex(*spec.split)}}},
                     {"behavior", spec.split_removed ? "Removed" : "Isolated"},
                     {"invert", spec.split_removed}});
  }
  parts.push_back(byte_level);
  return {{"type", "Sequence"}, {"pretokenizers", parts}};
}

}  // namespace

TokenizerSpec parse_tokenizer_json(std::string_view json, const std::string& name) {
  TokenizerSpec spec;
  Parser(name, spec).parse(json);
  return spec;
}

std::string write_tokenizer_json(const TokenizerSpec& spec) {
  OrderedJson added = OrderedJson::array();
  for (const AddedToken& token : spec.added_tokens) {
    added.push_back({{"id", token.id},
                     {"content", token.content},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", token.normalized},
                     {"special", token.special}});
  }
  OrderedJson vocab = OrderedJson::object();
  std::unordered_map<int32_t, std::string_view> names;
  // Appended as pairs, because a keyed insert into an ordered object searches it from the start.
  auto& entries = vocab.get_ref<OrderedJson::object_t&>();
  entries.reserve(spec.vocab.size());
  for (const auto& [token, id] : spec.vocab) {
    entries.Container::emplace_back(token, id);
    names.emplace(id, token);
  }
  // As "a b", which older readers know too, unless a merge would read back as another or as a comment.
  const bool as_text = std::all_of(spec.merges.begin(), spec.merges.end(), [&](const auto& merge) {
    const std::string_view left = names.at(merge.first), right = names.at(merge.second);
    return !is_comment(left) && !is_comment(fmt::format("{} {}", left, right)) &&
           left.find(' ') == left.npos && right.find(' ') == right.npos;
  });
  OrderedJson merges = OrderedJson::array();
  for (const auto& [left, right] : spec.merges) {
    if (as_text)
      merges.push_back(fmt::format("{} {}", names.at(left), names.at(right)));
    else
      merges.push_back(OrderedJson::array({names.at(left), names.at(right)}));
  }
  const OrderedJson root = {{"version", "1.0"},
                            {"truncation", nullptr},
                            {"padding", nullptr},
                            {"added_tokens", added},
                            {"normalizer", spec.nfc ? OrderedJson{{"type", "NFC"}} : OrderedJson()},
                            {"pre_tokenizer", pre_tokenizer_json(spec)},
                            {"post_processor", OrderedJson(Json::parse(spec.post_processor))},
                            {"decoder", byte_level_json(true, true)},
                            {"model",
                             {{"type", "BPE"},
                              {"dropout", nullptr},
                              {"unk_token", nullptr},
                              {"continuing_subword_prefix", nullptr},
                              {"end_of_word_suffix", nullptr},
                              {"fuse_unk", false},
                              {"byte_fallback", false},
                              {"ignore_merges", spec.ignore_merges},
                              {"vocab", std::move(vocab)},
                              {"merges", std::move(merges)}}}};
  return root.dump(1) + "\n";
}

}  // namespace transxssm
