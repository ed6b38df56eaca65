#include "runtime/data/json_line.h"

#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "runtime/error.h"
#include "runtime/printable.h"

namespace transxssm {
namespace {

constexpr int kMaxDepth = 64;
constexpr size_t kMaxNames = 100;  // bytes of a list of names in a message

// The number of \uHHHH at `at`, or -1.
int32_t escaped_unit(std::string_view line, size_t at) {
  if (at + 6 > line.size() || line[at] != '\\' || line[at + 1] != 'u') return -1;
  int32_t value = 0;
  for (const char c : line.substr(at + 2, 4)) {
    const int32_t digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

// Halves of surrogate pairs that stand alone; with `replace` they become \ufffd, of the same length.
int64_t lone_surrogates(std::string& line, bool replace) {
  int64_t count = 0;
  for (size_t at = line.find('\\'); at != std::string::npos; at = line.find('\\', at)) {
    const int32_t unit = escaped_unit(line, at);
    if (unit < 0xD800 || unit > 0xDFFF) {
      at += unit < 0 ? 2 : 6;
      continue;
    }
    const int32_t next = unit < 0xDC00 ? escaped_unit(line, at + 6) : -1;
    if (next >= 0xDC00 && next <= 0xDFFF) {
      at += 12;
      continue;
    }
    ++count;
    if (replace) line.replace(at + 2, 4, "fffd");
    at += 6;
  }
  return count;
}

// Looks at one top-level field of a JSON object and builds nothing else.
class FieldReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit FieldReader(const std::string& field) : field_(field) {}
  bool object = false;
  int found = 0;
  std::string value, error;
  std::string key_at_hand, names;
  const char* type = nullptr;  // of the field, where it is no string

  bool null() override { return scalar("null"); }
  bool boolean(bool) override { return scalar("true or false"); }
  bool number_integer(number_integer_t) override { return scalar("a number"); }
  bool number_unsigned(number_unsigned_t) override { return scalar("a number"); }
  bool number_float(number_float_t, const string_t&) override { return scalar("a number"); }
  bool binary(binary_t&) override { return scalar("binary"); }
  bool string(string_t& text) override {
    if (wanted_ && depth_ == 1) {
      value = std::move(text);
      wanted_ = false;
    }
    return true;
  }
  bool start_object(size_t) override {
    object = object || depth_ == 0;
    scalar("an object");
    return ++depth_ <= kMaxDepth;
  }
  bool start_array(size_t) override {
    scalar("an array");
    return ++depth_ <= kMaxDepth;
  }
  bool end_object() override { return --depth_, true; }
  bool end_array() override { return --depth_, true; }
  bool key(string_t& name) override {
    if (depth_ != 1) return true;
    wanted_ = name == field_;
    found += wanted_;
    if (names.size() < kMaxNames) names += (names.empty() ? "" : ", ") + printable(name, kMaxNames);
    key_at_hand = std::move(name);
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& e) override {
    error = e.what();
    return false;
  }

 private:
  bool scalar(const char* kind) {
    if (wanted_ && depth_ == 1) {
      type = kind;
      wanted_ = false;
    }
    return true;
  }
  const std::string& field_;
  int depth_ = 0;
  bool wanted_ = false;
};

}  // namespace

JsonLine read_json_line(std::string& line, const std::string& field, bool replace) {
  JsonLine result;
  const int64_t lone = lone_surrogates(line, replace);
  FieldReader reader(field);
  const bool parsed = nlohmann::json::sax_parse(line, &reader);
  if (lone > 0 && !replace) {
    result.problem = fmt::format(
        "the field \"{}\" holds half of a surrogate pair (such as \\ud83d alone), which is no character; "
        "pass "
        "--invalid-utf8 replace to put U+FFFD in its place",
        printable(reader.key_at_hand));
  } else if (!parsed) {
    result.problem = "not valid JSON: " +
                     (reader.error.empty() ? std::string("nested too deeply") : printable(reader.error));
  } else if (reader.type != nullptr) {
    result.problem = fmt::format("the field \"{}\" is {} instead of a string", printable(field), reader.type);
  } else if (reader.found == 0) {
    result.problem =
        fmt::format("there is no string field \"{}\"; {}", printable(field),
                    reader.object ? "the fields are " + reader.names : "the line is no JSON object");
  } else if (reader.found > 1) {
    result.problem = fmt::format("the field \"{}\" comes {} times", printable(field), reader.found);
  } else {
    result.text = std::move(reader.value);
    result.replacements = lone;
  }
  return result;
}

}  // namespace transxssm
