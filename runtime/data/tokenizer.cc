#include "runtime/data/tokenizer.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <filesystem>
#include <filesystem>
#include <thread>

#include "runtime/data/tokenizer_json.h"
#include "runtime/data/tokenizer_model.h"
#include "runtime/data/utf8.h"
#include "runtime/error.h"
#include "runtime/file_system.h"

namespace transxssm {
namespace {

constexpr int64_t max_file_bytes = int64_t{64} << 20;
constexpr size_t part_bytes = size_t{256} << 10;  // long documents are cut into about this much a thread

// work(i) for i < count on `threads` threads, the caller among them. Rethrows the first exception.
template <class Work>
void parallel_for(size_t count, int threads, Work&& work) {
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  auto worker = [&] {
    try {
      for (size_t i; !failed.load() && (i = next.fetch_add(1)) < count;) work(i);
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> others;
    const size_t wanted = std::min(count, static_cast<size_t>(std::max(threads, 1)));
    for (size_t i = 1; i < wanted; ++i) others.emplace_back(worker);
    worker();
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace

Tokenizer Tokenizer::load(const std::string& path) {
  std::string text;
  try {
    // Links are followed: caches of downloaded models are made of them.
    text = read_file(posix_file_system(), std::filesystem::canonical(path).string(), max_file_bytes);
  } catch (const std::exception& error) {
    throw DataError("Cannot read the tokenizer {}: {}", path, error.what());
  }
  return from_json(text, path);
}

Tokenizer Tokenizer::from_json(std::string_view json, const std::string& name) {
  return Tokenizer(parse_tokenizer_json(json, name), name);
}

Tokenizer::Tokenizer(TokenizerSpec spec, const std::string& name)
    : model_(std::make_shared<const TokenizerModel>(std::move(spec), name)) {}

std::string Tokenizer::to_json() const {
  return write_tokenizer_json(model_->spec());
}

int32_t Tokenizer::vocab_size() const {
  return static_cast<int32_t>(model_->entries().size());
}

void Tokenizer::encode(std::string_view text, std::vector<int32_t>& ids, bool add_special_tokens) const {
  if (const size_t valid = valid_utf8_prefix(text); valid != text.size()) {
    throw DataError("The text is not valid UTF-8 at byte {}.", valid);
  }
  auto append = [&](const std::vector<int32_t>& list) { ids.insert(ids.end(), list.begin(), list.end()); };
  if (add_special_tokens) append(model_->spec().template_prefix);
  model_->encode(text, ids);
  if (add_special_tokens) append(model_->spec().template_suffix);
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  std::vector<int32_t> ids;
  encode(text, ids, add_special_tokens);
  return ids;
}

std::vector<std::vector<int32_t>> Tokenizer::encode_batch(std::span<const std::string_view> documents,
                                                          int threads) const {
  struct Part {
    size_t document;
    std::string_view text;
    std::vector<int32_t> ids;
  };
  std::vector<Part> parts;
  for (size_t d = 0; d < documents.size(); ++d) {
    std::string_view rest = documents[d];
    do {
      const size_t end = rest.size() > 2 * part_bytes ? model_->safe_cut(rest, part_bytes) : rest.size();
      parts.push_back({d, rest.substr(0, end), {}});
      rest.remove_prefix(end);
    } while (!rest.empty());
  }
  parallel_for(parts.size(), threads, [&](size_t i) {
    Part& part = parts[i];
    // Parts begin and end at ASCII, so each is valid by itself if the document is.
    if (const size_t valid = valid_utf8_prefix(part.text); valid != part.text.size()) {
      const auto begin = static_cast<size_t>(part.text.data() - documents[part.document].data());
      throw DataError("Document {} is not valid UTF-8 at byte {}.", part.document, begin + valid);
    }
    part.ids.reserve(part.text.size() / 3);
    model_->encode(part.text, part.ids);
  });
  std::vector<std::vector<int32_t>> result(documents.size());
  for (Part& part : parts) {
    std::vector<int32_t>& ids = result[part.document];
    if (ids.empty()) {
      ids = std::move(part.ids);
    } else {
      ids.insert(ids.end(), part.ids.begin(), part.ids.end());
    }
  }
  return result;
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  for (int32_t id : ids) text.append(token_bytes(id));
  return text;
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  if (!has_token(id))
    throw DataError("The tokenizer has no token {}: its ids go from 0 to {}{}.", id, vocab_size() - 1,
                    id >= 0 && id < vocab_size() ? ", with holes" : "");
  return model_->entries()[static_cast<size_t>(id)].bytes;
}

bool Tokenizer::has_token(int32_t id) const {
  return id >= 0 && id < vocab_size() && model_->entries()[static_cast<size_t>(id)].exists;
}

std::optional<int32_t> Tokenizer::token_id(std::string_view added_token) const {
  const auto found = model_->added_ids().find(std::string(added_token));
  if (found == model_->added_ids().end()) return std::nullopt;
  return found->second;
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size() && model_->entries()[static_cast<size_t>(id)].special;
}

std::span<const std::string_view> Tokenizer::end_of_document_names() {
  // \uFF5C and \u2581 are the bar and the space of DeepSeek's tokens.
  static constexpr std::string_view kNames[] = {"<|endoftext|>",
                                                "<|end_of_text|>",
                                                "</s>",
                                                "<eos>",
                                                "[EOS]",
                                                "<|eos|>",
                                                "<EOS>",
                                                "<|endofdocument|>",
                                                "<\uFF5Cend\u2581of\u2581sentence\uFF5C>"};
  return kNames;
}

std::optional<int32_t> Tokenizer::end_of_document() const {
  for (const std::string_view name : end_of_document_names())
    if (const auto id = token_id(name)) return id;
  return std::nullopt;
}

bool Tokenizer::may_cut(std::string_view text, size_t at) const {
  return model_->may_cut(text, at);
}

bool Tokenizer::straddles(std::string_view text, size_t at) const {
  return model_->straddles(text, at);
}

size_t Tokenizer::cut_context() const {
  return model_->cut_context();
}

}  // namespace transxssm
