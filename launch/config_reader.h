// Reads textproto, JSON and `path=value` overrides into a protobuf message by reflection. Unlike the parsers
// of the protobuf library it goes on after a mistake, knows where every field was set, and hints at misspelt
// names.
#pragma once

#include <google/protobuf/message.h>

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace transxssm {

class ConfigReader {
 public:
  // Fills `root`. `name` is the file in messages. A byte order mark before a text is skipped.
  ConfigReader(google::protobuf::Message& root, std::string name) : root_(root), name_(std::move(name)) {}

  // False where the structure is broken, so that what follows was not read.
  bool read_textproto(const std::string& text);
  bool read_json(const std::string& text);
  void read_override(const std::string& assignment);  // "parallel.tp=2"

  // Sets a scalar field from plain text, as an override does; false where it does not parse.
  bool set_from_text(google::protobuf::Message& message, const google::protobuf::FieldDescriptor& field,
                     const std::string& path, const std::string& text);

  // Notes a mistake at the place where `path` was set, or at the whole file.
  void add_mistake(const std::string& path, const std::string& what);
  bool has_mistake(const std::string& path) const;  // at the path or inside it
  // The first kMaxMistakes of them: nobody reads more, and reading stops there.
  const std::vector<std::string>& mistakes() const { return mistakes_; }
  static constexpr size_t kMaxMistakes = 100;

 private:
  friend class TextprotoReader;
  enum class Kind { number, word, string, plain };  // plain: from an override, to be read as the field's type
  struct Scalar {
    Kind kind;
    std::string text;
  };

  void note(const std::string& mistake);
  bool is_full() const { return mistakes_.size() >= kMaxMistakes; }
  void set_scalar(google::protobuf::Message& message, const google::protobuf::FieldDescriptor& field,
                  const std::string& path, const Scalar& value);
  void read_json_object(const void* object, google::protobuf::Message& message, const std::string& path);
  void read_json_value(const void* value, google::protobuf::Message& message,
                       const google::protobuf::FieldDescriptor& field, const std::string& path);
  void set_list_from_text(google::protobuf::Message& message, const google::protobuf::FieldDescriptor& field,
                          const std::string& path, const std::string& text);
  const google::protobuf::FieldDescriptor* find_field(const google::protobuf::Message& message,
                                                      const std::string& name, const std::string& path);

  google::protobuf::Message& root_;
  std::string name_;
  std::string place_;                          // where the field being read stands: "file:3:9"
  std::map<std::string, std::string> places_;  // path -> place
  std::vector<std::string> mistakes_;
  std::set<std::string> mistaken_paths_;
};

// `text` without the byte order mark that editors put before it.
std::string_view without_byte_order_mark(std::string_view text);

}  // namespace transxssm
