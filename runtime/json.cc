#include "runtime/json.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace transxssm {
namespace {

using Json = nlohmann::json;

// Builds the value from the library's events, so that a limit stops it before memory is taken.
class Builder final : public Json::json_sax_t {
 public:
  Builder(const JsonLimits& limits, JsonText& result) : limits_(limits), result_(result) {}

  bool null() override { return put(nullptr) != nullptr; }
  bool boolean(bool value) override { return put(value) != nullptr; }
  bool number_integer(number_integer_t value) override { return put(value) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return put(value) != nullptr; }
  bool number_float(number_float_t value, const string_t&) override { return put(value) != nullptr; }
  bool string(string_t& value) override { return put(std::move(value)) != nullptr; }
  bool binary(binary_t&) override { return false; }  // not of JSON text
  bool start_object(std::size_t) override { return open(Json::value_t::object); }
  bool start_array(std::size_t) override { return open(Json::value_t::array); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    Level& level = levels_.back();
    auto& members = *level.container->get_ptr<Json::object_t*>();
    const auto [at, is_new] = members.try_emplace(name, nullptr);
    level.member = &*at;
    return is_new || fail(fmt::format("key {} is written twice", path()));
  }

  bool parse_error(std::size_t position, const std::string&, const Json::exception& error) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: what": only the last part is ours.
    const std::string_view text = error.what();
    const size_t name_end = text.find("] "), place_end = text.find(": ");
    const size_t begin = place_end != text.npos ? place_end + 2 : name_end != text.npos ? name_end + 2 : 0;
    position_ = position;
    return fail(fmt::format("is not JSON: {}", printable(text.substr(begin), 300)));
  }

  std::size_t position() const { return position_; }  // of what is no JSON, in bytes from 1; else 0

 private:
  struct Level {
    Json* container;
    Json::object_t::value_type* member = nullptr;  // the last key and its value, of an object
  };

  // Where the value at hand stands, such as metadata.sizes[3].
  std::string path() const {
    std::string path;
    for (const Level& level : levels_) {
      const size_t open = &level == &levels_.back() ? 0 : 1;  // an open element is counted already
      if (level.member != nullptr)
        path += (path.empty() ? "" : ".") + level.member->first;
      else
        path += fmt::format("[{}]", level.container->size() - open);
    }
    return printable(path);
  }

  bool fail(std::string problem) {
    result_.problem = std::move(problem);
    return false;
  }

  template <class T>
  Json* put(T&& value) {
    if (++num_values_ > limits_.max_values) {
      fail(fmt::format("has more than {} values", limits_.max_values));
      return nullptr;
    }
    if (levels_.empty()) return &(result_.value = Json(std::forward<T>(value)));
    const Level& level = levels_.back();
    if (level.member != nullptr) return &(level.member->second = Json(std::forward<T>(value)));
    auto& elements = *level.container->get_ptr<Json::array_t*>();
    return &elements.emplace_back(std::forward<T>(value));
  }

  bool open(Json::value_t type) {
    if (static_cast<int>(levels_.size()) == limits_.max_depth)
      return fail(fmt::format("is nested more than {} deep at {}", limits_.max_depth, path()));
    Json* container = put(type);
    if (container != nullptr) levels_.push_back({container});
    return container != nullptr;
  }

  bool close() {
    levels_.pop_back();
    return true;
  }

  const JsonLimits& limits_;
  JsonText& result_;
  std::vector<Level> levels_;  // a container does not move while one inside it is open
  int64_t num_values_ = 0;
  std::size_t position_ = 0;
};

void find_place(std::string_view text, std::size_t position, JsonText& result) {
  const std::string_view before = text.substr(0, std::min(position > 0 ? position - 1 : 0, text.size()));
  const size_t line_begin = before.rfind('\n') + 1;  // npos + 1 is 0
  result.line = 1 + std::count(before.begin(), before.end(), '\n');
  result.column = static_cast<int64_t>(before.size() - line_begin) + 1;
}

}  // namespace

JsonText parse_json(std::string_view text, const JsonLimits& limits) {
  JsonText result;
  if (static_cast<int64_t>(text.size()) > limits.max_bytes) {
    result.problem = fmt::format("has {} bytes; at most {} are read", text.size(), limits.max_bytes);
    return result;
  }
  Builder builder(limits, result);
  if (Json::sax_parse(text.begin(), text.end(), &builder) && result.problem.empty()) return result;
  if (builder.position() > 0) find_place(text, builder.position(), result);
  result.value = nullptr;
  return result;
}

std::optional<int64_t> json_integer(const Json& value, int64_t min, int64_t max) {
  if (!value.is_number_integer()) return std::nullopt;
  if (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX}) return std::nullopt;
  const auto number = value.get<int64_t>();
  return number >= min && number <= max ? std::optional(number) : std::nullopt;
}

std::optional<int64_t> json_integer(const Json& object, const char* member, int64_t min, int64_t max) {
  const auto at = object.find(member);
  return at == object.end() ? std::nullopt : json_integer(*at, min, max);
}

std::optional<std::string> json_string(const Json& object, const char* member) {
  const auto at = object.find(member);
  return at == object.end() || !at->is_string() ? std::nullopt : std::optional(at->get<std::string>());
}

std::string printable_json(const Json& value, size_t max_bytes) {
  return printable(value.dump(-1, ' ', false, Json::error_handler_t::replace), max_bytes);
}

}  // namespace transxssm
