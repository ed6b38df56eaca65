#include "launch/config_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "launch/nearest.h"
#include "runtime/data/utf8.h"
#include "runtime/json.h"
#include "runtime/printable.h"

namespace transxssm {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using nlohmann::json;

namespace {

std::vector<std::string> field_names(const Descriptor& descriptor) {
  std::vector<std::string> names;
  for (int i = 0; i < descriptor.field_count(); ++i) names.push_back(descriptor.field(i)->name());
  return names;
}

std::string child_path(const std::string& path, const std::string& name) {
  return path.empty() ? name : path + "." + name;
}

std::string element_path(const std::string& path, int index) {
  return fmt::format("{}[{}]", path, index);
}

// Digits with a zero before them: eight is 010 to protobuf, ten to people.
bool may_be_octal(std::string_view text) {
  if (text.starts_with("-")) text.remove_prefix(1);
  return text.size() > 1 && text[0] == '0' && text.find_first_not_of("0123456789") == text.npos;
}

template <class Integer>
std::optional<Integer> parse_integer(std::string_view text) {
  if (may_be_octal(text)) return std::nullopt;
  const bool negative = text.starts_with("-");
  std::string digits(text.substr(negative ? 1 : 0));
  const bool hexadecimal = digits.starts_with("0x") || digits.starts_with("0X");
  if (hexadecimal) digits.erase(0, 2);
  if (digits.starts_with("-")) return std::nullopt;  // which from_chars would take
  if (negative) digits.insert(digits.begin(), '-');
  Integer value = 0;
  const char* last = digits.data() + digits.size();
  const auto [end, error] = std::from_chars(digits.data(), last, value, hexadecimal ? 16 : 10);
  if (error != std::errc() || end != last) return std::nullopt;
  return value;
}

std::optional<double> parse_double(std::string_view text) {
  if (may_be_octal(text)) return std::nullopt;
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// Strings of a configuration are words and paths: text without control characters.
bool is_plain_text(std::string_view text) {
  if (valid_utf8_prefix(text) != text.size()) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c < 0x20 || c == 0x7F) return false;
    if (c == 0xC2 && static_cast<unsigned char>(text[i + 1]) < 0xA0) return false;  // U+0080 to U+009F
  }
  return true;
}

std::optional<bool> parse_bool(const std::string& text) {
  if (text == "true" || text == "True" || text == "t" || text == "1") return true;
  if (text == "false" || text == "False" || text == "f" || text == "0") return false;
  return std::nullopt;
}

}  // namespace

void ConfigReader::note(const std::string& mistake) {
  if (!is_full()) mistakes_.push_back(mistake);
}

void ConfigReader::add_mistake(const std::string& path, const std::string& what) {
  mistaken_paths_.insert(path);  // also where the list is full: nothing may be computed from such a field
  if (is_full()) return;
  const auto place = places_.find(path);
  note(fmt::format("{}: {}: {}", place == places_.end() ? name_ : place->second, printable(path), what));
}

bool ConfigReader::has_mistake(const std::string& path) const {
  if (mistaken_paths_.contains(path)) return true;
  for (const char* inside : {".", "["}) {
    const auto next = mistaken_paths_.lower_bound(path + inside);
    if (next != mistaken_paths_.end() && next->starts_with(path + inside)) return true;
  }
  return false;
}

const FieldDescriptor* ConfigReader::find_field(const Message& message, const std::string& name,
                                                const std::string& path) {
  const FieldDescriptor* field = message.GetDescriptor()->FindFieldByName(name);
  if (field != nullptr) return field;
  const std::vector<std::string> names = field_names(*message.GetDescriptor());
  const std::string hint = did_you_mean(name, names);
  places_[path] = place_;
  add_mistake(path, "unknown field" + (hint.empty() ? "; known fields are " + join(names) : hint));
  return nullptr;
}

void ConfigReader::set_scalar(Message& message, const FieldDescriptor& field, const std::string& path,
                              const Scalar& value) {
  places_[path] = place_;
  const Reflection& reflection = *message.GetReflection();
  const bool number = value.kind == Kind::number || value.kind == Kind::plain;
  const auto integer = [&]<class Integer>(Integer, void (Reflection::*set)(Message*, const FieldDescriptor*,
                                                                           Integer) const) {
    const std::optional<Integer> parsed = number ? parse_integer<Integer>(value.text) : std::nullopt;
    if (parsed) return (reflection.*set)(&message, &field, *parsed);
    if (number && may_be_octal(value.text))
      return add_mistake(path, fmt::format("{} begins with a zero, as octal numbers do; leave it out",
                                           printable(value.text)));
    const bool negative = value.text.starts_with("-");
    const bool digits = value.text.find_first_not_of("0123456789", negative ? 1 : 0) == std::string::npos;
    if (number && digits && value.text.size() > (negative ? 1 : 0))
      return add_mistake(
          path, fmt::format("{} is out of range{}", printable(value.text),
                            negative && std::is_unsigned_v<Integer> ? "; the nearest legal value is 0" : ""));
    add_mistake(path, fmt::format("\"{}\" is not a whole number", printable(value.text)));
  };
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return integer(int32_t{}, &Reflection::SetInt32);
    case FieldDescriptor::CPPTYPE_INT64:
      return integer(int64_t{}, &Reflection::SetInt64);
    case FieldDescriptor::CPPTYPE_UINT64:
      return integer(uint64_t{}, &Reflection::SetUInt64);
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      const std::optional<double> parsed =
          value.kind != Kind::string ? parse_double(value.text) : std::nullopt;
      if (!parsed) return add_mistake(path, fmt::format("\"{}\" is not a number", printable(value.text)));
      if (!std::isfinite(*parsed))
        return add_mistake(path, fmt::format("{} is not a finite number", printable(value.text)));
      return reflection.SetDouble(&message, &field, *parsed);
    }
    case FieldDescriptor::CPPTYPE_BOOL: {
      const std::optional<bool> parsed = value.kind != Kind::string ? parse_bool(value.text) : std::nullopt;
      if (!parsed)
        return add_mistake(path, fmt::format("\"{}\" is neither true nor false", printable(value.text)));
      return reflection.SetBool(&message, &field, *parsed);
    }
    case FieldDescriptor::CPPTYPE_STRING:
      if (value.kind == Kind::number || value.kind == Kind::word)
        return add_mistake(path, fmt::format("{0} is not a string; write \"{0}\"", printable(value.text)));
      if (!is_plain_text(value.text))
        return add_mistake(
            path, fmt::format("\"{}\" is not UTF-8 without control characters", printable(value.text)));
      return reflection.SetString(&message, &field, value.text);
    default:
      return add_mistake(path, "cannot be set from text");
  }
}

bool ConfigReader::set_from_text(Message& message, const FieldDescriptor& field, const std::string& path,
                                 const std::string& text) {
  const size_t before = mistakes_.size();
  const auto place = places_.find(path);
  place_ = place == places_.end() ? name_ : place->second;
  set_scalar(message, field, path, {Kind::plain, text});
  return mistakes_.size() == before;
}

void ConfigReader::set_list_from_text(Message& message, const FieldDescriptor& field, const std::string& path,
                                      const std::string& text) {
  const Reflection& reflection = *message.GetReflection();
  reflection.ClearField(&message, &field);
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    Message& element = *reflection.AddMessage(&message, &field);
    const FieldDescriptor& first = *element.GetDescriptor()->field(0);
    const std::string element_name = element_path(path, reflection.FieldSize(message, &field) - 1);
    set_scalar(element, first, child_path(element_name, first.name()),
               {Kind::plain, text.substr(begin, end - begin)});
    begin = end + 1;
  }
}

void ConfigReader::read_override(const std::string& assignment) {
  place_ = "--set " + printable(assignment);
  const size_t equals = assignment.find('=');
  const std::string full_path = assignment.substr(0, equals);
  places_[full_path] = place_;
  if (equals == std::string::npos)
    return add_mistake(full_path, "has no value; write --set " + printable(full_path) + "=VALUE");
  const std::string value = assignment.substr(equals + 1);

  Message* message = &root_;
  std::string path;
  for (size_t begin = 0;;) {
    const size_t end = std::min(full_path.find('.', begin), full_path.size());
    std::string name = full_path.substr(begin, end - begin);
    std::optional<int> index;
    if (const size_t bracket = name.find('['); bracket != std::string::npos && name.back() == ']') {
      index = parse_integer<int>(name.substr(bracket + 1, name.size() - bracket - 2));
      if (!index)
        return add_mistake(full_path, fmt::format("{} has no whole number in its brackets", printable(name)));
      name.resize(bracket);
    }
    const bool last = end == full_path.size();
    path = child_path(path, name);
    const FieldDescriptor* field = find_field(*message, name, path);
    if (field == nullptr) return;
    const Reflection& reflection = *message->GetReflection();
    if (index && !field->is_repeated()) return add_mistake(full_path, path + " is not a list");
    if (field->is_repeated() && !index) {
      if (last) return set_list_from_text(*message, *field, path, value);
      return add_mistake(full_path, fmt::format("{0} is a list; write {0}[0]", path));
    }
    const bool is_message = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    if (last && is_message)
      return add_mistake(full_path,
                         "is a section; set one of its fields: " + join(field_names(*field->message_type())));
    if (!last && !is_message) return add_mistake(full_path, path + " has no fields");
    if (last) return set_scalar(*message, *field, path, {Kind::plain, value});
    if (index) {
      const int size = reflection.FieldSize(*message, field);
      if (*index < 0 || *index > size)
        return add_mistake(full_path,
                           fmt::format("{} has {} elements; index {} would leave a gap", path, size, *index));
      path = element_path(path, *index);
      message = *index == size ? reflection.AddMessage(message, field)
                               : reflection.MutableRepeatedMessage(message, field, *index);
    } else {
      message = reflection.MutableMessage(message, field);
    }
    begin = end + 1;
  }
}

bool ConfigReader::read_json(const std::string& text) {
  place_ = name_;
  const JsonText root = parse_json(without_byte_order_mark(text), {.max_depth = 16});
  if (!root.problem.empty()) {
    const std::string place = root.line == 0 ? "" : fmt::format(":{}:{}", root.line, root.column);
    note(fmt::format("{}{}: {}", name_, place, root.problem));
    return false;
  }
  if (!root.value.is_object()) {
    note(name_ + ": JSON is not an object");
    return false;
  }
  read_json_object(&root.value, root_, "");
  return !is_full();
}

void ConfigReader::read_json_object(const void* object, Message& message, const std::string& path) {
  for (const auto& [name, value] : static_cast<const json*>(object)->items()) {
    if (is_full()) return;
    const std::string child = child_path(path, name);
    const FieldDescriptor* field = find_field(message, name, child);
    if (field == nullptr) continue;
    if (!field->is_repeated()) {
      read_json_value(&value, message, *field, child);
    } else if (!value.is_array()) {
      add_mistake(child, "is not a list");
    } else {
      int index = 0;
      for (const json& element : value)
        read_json_value(&element, message, *field, element_path(child, index++));
    }
  }
}

void ConfigReader::read_json_value(const void* value, Message& message, const FieldDescriptor& field,
                                   const std::string& path) {
  const json& v = *static_cast<const json*>(value);
  const Reflection& reflection = *message.GetReflection();
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
    if (!v.is_object()) return add_mistake(path, "is not an object");
    Message& child = field.is_repeated() ? *reflection.AddMessage(&message, &field)
                                         : *reflection.MutableMessage(&message, &field);
    return read_json_object(&v, child, path);
  }
  const Kind kind = v.is_string() ? Kind::string : v.is_number() ? Kind::number : Kind::word;
  set_scalar(message, field, path, {kind, v.is_string() ? v.get<std::string>() : v.dump()});
}

std::string_view without_byte_order_mark(std::string_view text) {
  return text.starts_with("\xEF\xBB\xBF") ? text.substr(3) : text;
}

}  // namespace transxssm
