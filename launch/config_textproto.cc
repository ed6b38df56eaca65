// The textproto grammar of launch/config_reader.h, over the tokenizer of the protobuf library.
#include <fmt/format.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include "launch/config_reader.h"
#include "runtime/printable.h"

namespace transxssm {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using google::protobuf::io::Tokenizer;

class TextprotoReader : public google::protobuf::io::ErrorCollector {
 public:
  TextprotoReader(ConfigReader& reader, const std::string& text)
      : reader_(reader),
        text_(without_byte_order_mark(text)),
        input_(text_.data(), static_cast<int>(text_.size())),
        tokens_(&input_, this) {
    tokens_.set_comment_style(Tokenizer::SH_COMMENT_STYLE);
    tokens_.set_require_space_after_number(false);
  }

  bool read(Message& root) {
    try {
      tokens_.Next();
      fields(root, "", "", 0);
      return true;
    } catch (const GiveUp&) {  // the mistake is noted
      return false;
    }
  }

 private:
  struct GiveUp {};  // after a mistake in the structure nothing that follows has a meaning
  static constexpr int kMaxDepth = 16;

  const std::string& token() { return tokens_.current().text; }
  bool at(const char* symbol) {
    return tokens_.current().type == Tokenizer::TYPE_SYMBOL && token() == symbol;
  }
  bool take(const char* symbol) {
    const bool found = at(symbol);
    if (found) tokens_.Next();
    return found;
  }
  std::string place(int line, int column) const {
    return fmt::format("{}:{}:{}", reader_.name_, line + 1, column + 1);
  }
  std::string place() { return place(tokens_.current().line, tokens_.current().column); }

  // From the tokenizer: a string without an end, a control character.
  void AddError(int line, int column, const std::string& message) override {
    reader_.note(fmt::format("{}: {}", place(line, column), message));
  }

  [[noreturn]] void give_up(const std::string& expected) {
    const bool end = tokens_.current().type == Tokenizer::TYPE_END;
    reader_.note(fmt::format("{}: expected {}, found {}", place(), expected,
                             end ? "the end of the file" : fmt::format("\"{}\"", printable(token()))));
    throw GiveUp();
  }

  // The fields of one message up to `close`.
  void fields(Message& message, const std::string& path, const char* close, int depth) {
    if (depth > kMaxDepth) give_up(fmt::format("at most {} levels", kMaxDepth));
    while (true) {
      if (reader_.is_full()) throw GiveUp();
      if (*close != '\0' && take(close)) return;
      if (tokens_.current().type == Tokenizer::TYPE_END) {
        if (*close == '\0') return;
        give_up(fmt::format("\"{}\" at the end of {}", close, path));
      }
      if (tokens_.current().type != Tokenizer::TYPE_IDENTIFIER) give_up("the name of a field");
      field(message, path, depth);
      if (!take(",")) take(";");
    }
  }

  void field(Message& message, const std::string& path, int depth) {
    const std::string name = token();
    const std::string child = path.empty() ? name : path + "." + name;
    const std::string field_place = place();
    reader_.place_ = field_place;
    const FieldDescriptor* descriptor = reader_.find_field(message, name, child);
    tokens_.Next();
    const bool colon = take(":");
    if (descriptor == nullptr) return skip_value(colon, depth);
    if (!descriptor->is_repeated() && message.GetReflection()->HasField(message, descriptor)) {
      const std::string first = reader_.places_[child];
      reader_.places_[child] = field_place;
      reader_.add_mistake(child, fmt::format("is set twice, first at {}", first));
      return skip_value(colon, depth);
    }
    if (descriptor->is_repeated() && take("[")) {
      while (!take("]")) {
        if (reader_.is_full()) throw GiveUp();
        value(message, *descriptor, child, colon, depth);
        if (!take(",") && !at("]")) give_up(fmt::format("\",\" or \"]\" in {}", child));
      }
      return;
    }
    reader_.places_[child] = field_place;
    value(message, *descriptor, child, colon, depth);
  }

  void value(Message& message, const FieldDescriptor& descriptor, const std::string& path, bool colon,
             int depth) {
    const Reflection& reflection = *message.GetReflection();
    if (descriptor.cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
      if (!colon) give_up(fmt::format("\":\" after {}", path));
      if (at("{") || at("<") || at("[")) {
        reader_.add_mistake(path, "is one value, not a section or list");
        return skip_value(true, depth);
      }
      return reader_.set_scalar(message, descriptor, path, scalar());
    }
    const char* close = take("{") ? "}" : take("<") ? ">" : nullptr;
    if (close == nullptr) {
      reader_.add_mistake(path, fmt::format("is a section; write {} {{ ... }}", descriptor.name()));
      return skip_value(colon, depth);
    }
    if (!descriptor.is_repeated())
      return fields(*reflection.MutableMessage(&message, &descriptor), path, close, depth + 1);
    const int index = reflection.FieldSize(message, &descriptor);
    Message& element = *reflection.AddMessage(&message, &descriptor);
    fields(element, fmt::format("{}[{}]", path, index), close, depth + 1);
  }

  ConfigReader::Scalar scalar() {
    const std::string sign = take("-") ? "-" : "";
    ConfigReader::Scalar result{ConfigReader::Kind::word, sign + token()};
    switch (tokens_.current().type) {
      case Tokenizer::TYPE_INTEGER:
      case Tokenizer::TYPE_FLOAT:
        result.kind = ConfigReader::Kind::number;
        break;
      case Tokenizer::TYPE_IDENTIFIER:
        break;
      case Tokenizer::TYPE_STRING:
        if (!sign.empty()) give_up("a number after \"-\"");
        result = {ConfigReader::Kind::string, ""};
        for (; tokens_.current().type == Tokenizer::TYPE_STRING; tokens_.Next())  // neighbours are joined
          Tokenizer::ParseStringAppend(token(), &result.text);
        return result;
      default:
        give_up("a value");
    }
    const int line = tokens_.current().line;
    const int end = tokens_.current().end_column;
    tokens_.Next();
    // "1f1b" or "12abc" without quotes: one word to a person, two tokens here.
    while (result.kind == ConfigReader::Kind::number && tokens_.current().line == line &&
           tokens_.current().column == end && tokens_.current().type == Tokenizer::TYPE_IDENTIFIER) {
      result = {ConfigReader::Kind::word, result.text + token()};
      tokens_.Next();
    }
    return result;
  }

  void skip_value(bool colon, int depth) {
    if (depth > kMaxDepth) give_up(fmt::format("at most {} levels", kMaxDepth));
    const char* close = take("{") ? "}" : take("<") ? ">" : take("[") ? "]" : nullptr;
    if (close == nullptr) {
      if (!colon) give_up("\":\" or \"{\" after the name of a field");
      scalar();
      return;
    }
    while (!take(close)) {
      if (tokens_.current().type == Tokenizer::TYPE_END) give_up(fmt::format("\"{}\"", close));
      if (reader_.is_full()) throw GiveUp();
      if (at("{") || at("<") || at("[")) {
        skip_value(true, depth + 1);
      } else {
        tokens_.Next();
      }
    }
  }

  ConfigReader& reader_;
  std::string_view text_;
  google::protobuf::io::ArrayInputStream input_;
  Tokenizer tokens_;
};

bool ConfigReader::read_textproto(const std::string& text) {
  return TextprotoReader(*this, text).read(root_);
}

}  // namespace transxssm
