// Time and memory of every reader grow with the input, whatever the input is: an input of four times the
// length takes less than six times as much.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "checkpoint/plan.h"
#include "checkpoint/safetensors.h"
#include "runtime/data/byte_symbols.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/growth.h"
#include "tests/fuzz/measure.h"

namespace transxssm::fuzz {
namespace {

constexpr double kFactor = 6;
constexpr int kAttempts = 5;
constexpr double kEnoughSeconds = 4e-3;
constexpr size_t kEnoughBytes = 150'000;

const Target& find_target(const std::string& name) {
  for (const Target& target : targets())
    if (target.name == name) return target;
  throw Fault{"no target " + name};
}

std::string json_keys(int n, const std::string& before, const std::string& after) {
  return before + repeat(n, [](int i) { return fmt::format("{}\"k{}\":{}", i == 0 ? "" : ",", i, i); }) +
         after;
}
std::string nested(int n, const std::string& before, const std::string& after) {
  return before + std::string(static_cast<size_t>(n), '[') + std::string(static_cast<size_t>(n), ']') + after;
}
std::string safetensors(const std::string& json, size_t data) {
  std::string file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(json.size() >> (8 * i)));
  return file + json + std::string(data, '\0');
}
// An empty field of a protobuf message, of two bytes.
std::string empty_messages(int n, int field) {
  return repeat(n, std::string{static_cast<char>(field << 3 | 2), '\0'});
}

const std::string kTokenizer = R"({"model":{"type":"BPE","vocab":{},"merges":[]},"added_tokens":)";
const std::string kPreTokenizer = R"("pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false})";

// A tokenizer that is accepted, with more in its vocabulary and merges, and with `rest` of the file.
std::string whole_tokenizer(const std::string& tokens, const std::string& merges, const std::string& rest) {
  std::string vocab;
  for (int byte = 0; byte < 256; ++byte) {
    const std::string symbol = bytes_to_symbols(std::string(1, static_cast<char>(byte)));
    vocab += fmt::format("{}{}:{}", byte == 0 ? "" : ",", nlohmann::json(symbol).dump(), byte);
  }
  return R"({"model":{"type":"BPE","vocab":{)" + vocab + tokens + "},\"merges\":[" + merges + "]}," +
         kPreTokenizer + rest + "}";
}
// Merges of any two bytes.
std::string tokenizer_merges(int n) {
  std::string tokens, merges;
  for (int i = 0; i < n; ++i) {
    const auto symbol = [](int byte) { return bytes_to_symbols(std::string(1, static_cast<char>(byte))); };
    const std::string left = symbol(i / 256 % 256), right = symbol(i % 256);
    tokens += fmt::format(",{}:{}", nlohmann::json(left + right).dump(), 256 + i);
    merges += fmt::format("{}{}", i == 0 ? "" : ",", nlohmann::json(left + " " + right).dump());
  }
  return whole_tokenizer(tokens, merges, "");
}
// A template of n special tokens.
std::string template_of(int n) {
  const auto item = [](int i) { return fmt::format(R"(,{{"SpecialToken":{{"id":"k{}"}}}})", i); };
  const auto ids = [](int i) { return fmt::format(R"({}"k{}":{{"ids":[0]}})", i == 0 ? "" : ",", i); };
  return R"(,"post_processor":{"type":"TemplateProcessing","single":[{"Sequence":{"id":"A"}})" +
         repeat(n, item) + "],\"special_tokens\":{" + repeat(n, ids) + "}}";
}

const std::string kHeader = "{\"format\":\"transxssm metrics 1\",\"first_step\":1,\"facts\":{}}\n";

const std::vector<Reading>& shapes() {
  static const std::vector<Reading> list = {
      {"ConfigSections", "config", [](int n) { return repeat(n, "model {}\n"); }},
      {"ConfigUnknownFields", "config", [](int n) { return repeat(n, "modle: 1\n"); }},
      {"ConfigUnknownSections", "config", [](int n) { return repeat(n, "modle { a: 1 }\n"); }},
      {"ConfigWrongValues", "config", [](int n) { return repeat(n, "data { train { path: 7 } }\n"); }},
      {"ConfigList", "config", [](int n) { return repeat(n, "data { train { path: 'a' weight: 0 } }\n"); }},
      {"ConfigElements", "config",
       [](int n) { return "data { " + repeat(n, "train { path: 'a' weight: 0 }\n") + "}"; }},
      {"ConfigDeep", "config", [](int n) { return repeat(n, "model {"); }},
      {"ConfigDeepUnknown", "config", [](int n) { return "a " + repeat(n, "{ a "); }},
      {"ConfigStrings", "config", [](int n) { return "data { cache: " + repeat(n, "'a' ") + "}"; }},
      {"ConfigWord", "config", [](int n) { return "data { cache: " + repeat(n, "1a") + "}"; }},
      {"ConfigOverride", "config",
       [](int n) { return std::string(1, '\0') + "data.train=" + repeat(n, "a,"); }},
      {"ConfigOverridePath", "config", [](int n) { return std::string(1, '\0') + repeat(n, "a.") + "=1"; }},
      {"JsonConfigKeys", "config", [](int n) { return json_keys(n, "{", "}"); }},
      {"JsonConfigSections", "config",
       [](int n) { return "{\"model\":{}" + repeat(n, ",\"model\":{}") + "}"; }},
      {"JsonConfigElements", "config",
       [](int n) {
         return "{\"data\":{\"train\":[{}" + repeat(n, ",{\"path\":\"a\",\"weight\":0}") + "]}}";
       }},
      {"JsonConfigDeep", "config", [](int n) { return nested(n, "{\"model\":", "}"); }},
      {"ModelConfigFields", "model_config", [](int n) { return repeat(n, "num_heads: 4\n"); }},
      {"ConfigLongName", "config", [](int n) { return repeat(n, "name") + ": 1"; }},
      {"ConfigLongString", "config",
       [](int n) { return "parallel { device: '" + repeat(n, "gpu ") + "' }"; }},
      {"ConfigLongNumber", "config", [](int n) { return "schedule { steps: " + repeat(n, "1234") + " }"; }},
      {"ModelConfigLongName", "model_config", [](int n) { return repeat(n, "name") + ": 1"; }},
      {"ModelConfigLongWord", "model_config",
       [](int n) { return "ssd_position: '" + repeat(n, "a\\033") + "'"; }},
      {"ModelConfigLongPreset", "model_config",
       [](int n) { return "preset: '" + repeat(n, "a\\033") + "'"; }},
      {"ModelConfigPattern", "model_config",
       [](int n) { return fmt::format("d_model: 8 num_layers: {} layer_pattern: '{}'", n, repeat(n, "A")); }},
      {"HuggingFaceConfigKeys", "hugging_face_config",
       [](int n) { return json_keys(n, "{\"model_type\":\"llama\",", "}"); }},
      {"HuggingFaceConfigDeep", "hugging_face_config",
       [](int n) { return nested(n, "{\"model_type\":\"llama\",\"x\":", "}"); }},
      {"HuggingFaceConfigLongType", "hugging_face_config",
       [](int n) { return "{\"model_type\":\"" + repeat(n, "a\\u001b") + "\"}"; }},
      {"HuggingFaceConfigPattern", "hugging_face_config",
       [](int n) {
         return R"({"model_type":"transxssm","vocab_size":8,"hidden_size":8,"num_hidden_layers":1,)"
                R"("intermediate_size":8,"num_attention_heads":1,"layer_pattern":")" +
                repeat(n, "a\\u001b") + "\"}";
       }},
      {"WeightIndexNames", "weight_index",
       [](int n) {
         return "{\"weight_map\":{" +
                repeat(
                    n,
                    [](int i) { return fmt::format("{}\"w{}\":\"a.safetensors\"", i == 0 ? "" : ",", i); }) +
                "}}";
       }},
      {"WeightIndexLongName", "weight_index",
       [](int n) { return "{\"weight_map\":{\"" + repeat(n, "a\\u001b") + "\":\"a.safetensors\"}}"; }},
      {"WeightIndexLongShard", "weight_index",
       [](int n) { return "{\"weight_map\":{\"embed\":\"" + repeat(n, "a\\u001b") + "\"}}"; }},
      {"WeightIndexOther", "weight_index",
       [](int n) { return json_keys(n, "{\"x\":{", "},\"weight_map\":{}}"); }},
      {"WeightIndexNumbers", "weight_index",
       [](int n) { return "{\"x\":[0" + repeat(n, ",[]") + "],\"weight_map\":{}}"; }},
      {"WeightIndexDeep", "weight_index", [](int n) { return nested(n, "{\"weight_map\":", "}"); }},
      {"SafetensorsTensors", "safetensors",
       [](int n) {
         return safetensors(
             "{" +
                 repeat(n,
                        [](int i) {
                          return fmt::format(
                              "{}\"w{}\":{{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[{},{}]}}",
                              i == 0 ? "" : ",", i, i, i + 1);
                        }) +
                 "}",
             static_cast<size_t>(n));
       }},
      {"SafetensorsMetadata", "safetensors",
       [](int n) { return safetensors(json_keys(n, "{\"__metadata__\":{", "}}"), 0); }},
      {"SafetensorsShape", "safetensors",
       [](int n) { return safetensors("{\"a\":{\"shape\":[1" + repeat(n, ",1") + "]}}", 0); }},
      {"SafetensorsDeep", "safetensors", [](int n) { return safetensors(nested(n, "{\"a\":", "}"), 0); }},
      {"ManifestTensors", "manifest", [](int n) { return empty_messages(n, 7); }},
      {"ManifestFiles", "manifest", [](int n) { return empty_messages(n, 8); }},
      {"ManifestStates", "manifest", [](int n) { return empty_messages(n, 5); }},
      {"ManifestUnknown", "manifest", [](int n) { return empty_messages(n, 15); }},
      {"BoxTableBoxes", "box_table", [](int n) { return std::string(4, '\x7f') + empty_messages(n, 4); }},
      {"BoxTableUnknown", "box_table", [](int n) { return std::string(4, '\x7f') + empty_messages(n, 15); }},
      {"TokenizerVocabulary", "tokenizer_json",
       [](int n) { return json_keys(n, R"({"model":{"type":"BPE","vocab":{)", R"(},"merges":[]}})"); }},
      {"TokenizerMerges", "tokenizer_json",
       [](int n) {
         return R"({"model":{"type":"BPE","vocab":{"a":0},"merges":["a a")" + repeat(n, ",\"a a\"") + "]}}";
       }},
      {"TokenizerAddedTokens", "tokenizer_json",
       [](int n) {
         return kTokenizer + "[" +
                repeat(n,
                       [](int i) {
                         return fmt::format(
                             "{}{{\"id\":{},\"content\":\"<{}>\",\"special\":true,\"single_word\":false,"
                             "\"lstrip\":false,\"rstrip\":false,\"normalized\":false}}",
                             i == 0 ? "" : ",", i, i);
                       }) +
                "]}";
       }},
      {"TokenizerOther", "tokenizer_json", [](int n) { return json_keys(n, "{\"truncation\":{", "}}"); }},
      {"TokenizerDeep", "tokenizer_json", [](int n) { return nested(n, kTokenizer, "}"); }},
      {"TokenizerTemplate", "tokenizer_json", [](int n) { return whole_tokenizer("", "", template_of(n)); }},
      {"TokenizerWholeVocabulary", "tokenizer_json",
       [](int n) {
         return whole_tokenizer(repeat(n, [](int i) { return fmt::format(",\"t{}\":{}", i, 256 + i); }), "",
                                "");
       }},
      {"TokenizerWholeMerges", "tokenizer_json", tokenizer_merges},
      {"TokenizerWholeAdded", "tokenizer_json",
       [](int n) {
         return whole_tokenizer(
             "", "", ",\"added_tokens\":[" + repeat(n, [](int i) {
                       return fmt::format(
                           "{}{{\"id\":{},\"content\":\"<{}>\",\"special\":true,\"normalized\":false}}",
                           i == 0 ? "" : ",", 256 + i, i);
                     }) + "]");
       }},
      {"TokenizerLongToken", "tokenizer_json",
       [](int n) { return R"({"model":{"vocab":{")" + repeat(n, "a\\u001b") + "\":-1}}}"; }},
      {"TokenizerLongKey", "tokenizer_json", [](int n) { return "{\"" + repeat(n, "a\\u001b") + "\":1}"; }},
      {"TokenizerLongType", "tokenizer_json",
       [](int n) { return R"({"model":{"type":")" + repeat(n, "a\\u001b") + "\"}}"; }},
      {"TokenFactsKeys", "token_facts", [](int n) { return json_keys(n, "{", "}"); }},
      {"TokenFactsDeep", "token_facts", [](int n) { return nested(n, "", ""); }},
      {"TextLines", "text", [](int n) { return std::string("\1\20") + repeat(n, "a line\n"); }},
      {"TextLetters", "text", [](int n) { return std::string("\1\20") + repeat(n, "aaaa"); }},
      {"TextIllFormed", "text", [](int n) { return std::string("\1\20") + repeat(n, "\xE2\x82"); }},
      {"TextSeparators", "text", [](int n) { return std::string("\5\20") + repeat(n, "a\n\n"); }},
      {"TextAlmostSeparators", "text", [](int n) { return std::string("\7\20") + repeat(n, "<end"); }},
      {"JsonLines", "text", [](int n) { return std::string("\3\20") + repeat(n, "{\"text\":\"a b c\"}\n"); }},
      {"JsonLineFields", "text",
       [](int n) { return std::string("\3\20") + json_keys(n, "{\"text\":\"a\",", "}\n"); }},
      {"JsonLineText", "text",
       [](int n) { return std::string("\3\20") + "{\"text\":\"" + repeat(n, "word\\n ") + "\"}\n"; }},
      {"JsonLineLongName", "text",
       [](int n) { return std::string("\3\20") + "{\"" + repeat(n, "a\\u001b") + "\":1}\n"; }},
      {"JsonLineDeep", "text", [](int n) { return std::string("\3\20") + nested(n, "{\"x\":", "}"); }},
      {"NfcMarks", "nfc", [](int n) { return "a" + repeat(n, "\xCC\x81"); }},
      {"NfcLetters", "nfc", [](int n) { return repeat(n, "e\xCC\x81"); }},
      {"ScheduleActions", "schedule",
       [](int n) {
         return fmt::format("microbatches {} forward_only\nstage_ranks 0\n0:", n) +
                repeat(n, [](int i) { return fmt::format(" 0F{}", i); }) + "\n";
       }},
      {"ScheduleSteps", "schedule",
       [](int n) {
         return fmt::format("microbatches {}\nstage_ranks 0\n0:", n) +
                repeat(n, [](int i) { return fmt::format(" 0F{0} 0BW{0}", i); }) + "\n";
       }},
      {"ScheduleRanks", "schedule",
       [](int n) {
         return "microbatches 1 forward_only\nstage_ranks" +
                repeat(n, [](int i) { return fmt::format(" {}", i); }) + "\n" +
                repeat(n, [](int i) { return fmt::format("{0}: {0}F0\n", i); });
       }},
      {"ScheduleBackwards", "schedule",
       [](int n) {
         return "microbatches 1 forward_only\nstage_ranks" +
                repeat(n, [n](int i) { return fmt::format(" {}", n - 1 - i); }) + "\n" +
                repeat(n, [n](int i) { return fmt::format("{}: {}F0\n", i, n - 1 - i); });
       }},
      {"ScheduleDeadlock", "schedule",
       [](int n) {
         return "microbatches 1 forward_only\nstage_ranks" +
                repeat(n, [n](int i) { return fmt::format(" {}", i % (n / 2)); }) + "\n" +
                repeat(n / 2, [n](int i) { return fmt::format("{0}: {1}F0 {0}F0\n", i, n / 2 + i); });
       }},
      {"ScheduleStages", "schedule",
       [](int n) { return "microbatches 1\nstage_ranks" + repeat(n, " 0") + "\n0:\n"; }},
      {"ScheduleLongWord", "schedule", [](int n) { return repeat(n, "word"); }},
      {"ScheduleTwice", "schedule",
       [](int n) { return "microbatches 1\nstage_ranks 0\n0:" + repeat(n, " 0F0") + "\n"; }},
      {"MetricsRecords", "metrics",
       [](int n) {
         return kHeader +
                repeat(n, [](int i) { return fmt::format("{{\"step\":{},\"train/loss\":1.5}}\n", i + 1); });
       }},
      {"MetricsKeys", "metrics", [](int n) { return kHeader + json_keys(n, "{\"step\":1,", "}\n"); }},
      {"MetricsStarts", "metrics",
       [](int n) { return kHeader + json_keys(n, "{\"step\":1,", "}\n") + repeat(n, kHeader); }},
      {"MetricsFacts", "metrics",
       [](int n) {
         return "{\"format\":\"transxssm metrics 1\",\"first_step\":1,\"facts\":{" +
                repeat(n, [](int i) { return fmt::format("{}\"f{}\":\"x\"", i == 0 ? "" : ",", i); }) +
                "}}\n";
       }},
      {"MetricsLongName", "metrics",
       [](int n) { return kHeader + "{\"step\":1,\"" + repeat(n, "a\\u001b") + "\":true}\n"; }},
      {"MetricsBroken", "metrics", [](int n) { return kHeader + repeat(n, "{\"step\":\n"); }},
      {"MetricsDeep", "metrics", [](int n) { return kHeader + nested(n, "{\"step\":1,\"x\":", "}\n"); }},
      {"CommitDigits", "commit", [](int n) { return "TXC1 " + repeat(n, "0123"); }},
      {"ProgressBytes", "progress", [](int n) { return repeat(n, "20GRPXXT"); }},
  };
  return list;
}

TEST_P(Growth, IsLinear) {
  const Reading& shape = GetParam();
  const Target& target = find_target(shape.target);
  run_target(target, "");
  std::map<int, std::string> made;
  const auto input = [&](int n) -> const std::string& {
    const auto found = made.find(n);
    return found != made.end() ? found->second : made.emplace(n, shape.input(n)).first->second;
  };
  const auto work = [&](int n) {
    try {
      run_target(target, input(n));
    } catch (const Fault& fault) {
      ADD_FAILURE() << fault.what;
    }
  };
  expect_growth(work, [&](int n) { return input(n).size(); });
}

INSTANTIATE_TEST_SUITE_P(Readers, Growth, testing::ValuesIn(shapes()),
                         [](const auto& test) { return std::string(test.param.name); });

// Boxes that start apart and stay open: n rows of one element each beside bars as long as the tensor.
TEST(GrowthOfBoxes, OpenAtOnce) {
  const auto boxes_of = [](int n) {
    std::vector<Box> boxes;
    for (int i = 0; i < n; ++i) boxes.push_back({{i, i}, {n - i, 1}});
    for (int i = 1; i < n; ++i) boxes.push_back({{0, i}, {i, 1}});
    return boxes;
  };
  std::map<int, std::vector<Box>> made;
  const auto boxes = [&](int n) -> const std::vector<Box>& {
    const auto found = made.find(n);
    return found != made.end() ? found->second : made.emplace(n, boxes_of(n)).first->second;
  };
  expect_growth(
      [&](int n) {
        EXPECT_EQ(partition_problem({n, n}, boxes(n)), "");
      },
      [&](int n) { return boxes(n).size() * sizeof(Box); });
}

}  // namespace

void expect_growth(const std::function<void(int)>& work, const std::function<size_t(int)>& bytes) {
  // What any input costs, such as tables of a fixed size, would hide how the rest grows.
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 3; ++i) least = std::min(least, cost_of([&] { work(2); }).seconds);
  int n = 128;
  while (bytes(n) < kEnoughBytes && cost_of([&] { work(n); }).seconds < least + kEnoughSeconds) n *= 2;
  const size_t large_bytes = bytes(4 * n);  // makes the input, too
  double ratio = 0;
  Cost small, large;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    small = cost_of([&] { work(n); });
    large = cost_of([&] { work(4 * n); });
    ratio = (large.seconds - least) / std::max(small.seconds - least, 1e-4);
    if (ratio < kFactor) break;
  }
  EXPECT_LT(ratio, kFactor) << n << " pieces take " << 1e3 * small.seconds << " ms, four times as many "
                            << 1e3 * large.seconds << " ms";
  EXPECT_LT(large.bytes, allowed_bytes(large_bytes)) << "for an input of " << large_bytes << " bytes";
}

void PrintTo(const Reading& shape, std::ostream* out) {
  *out << shape.name;
}

}  // namespace transxssm::fuzz
