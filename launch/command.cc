#include "launch/command.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <set>

#include "launch/nearest.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

bool takes_many(const std::string& placeholder) {
  return placeholder.ends_with("...");
}

std::vector<std::string> split_words(const std::string& text) {
  std::vector<std::string> words;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    if (end > begin) words.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return words;
}

// First words of commands of two words, in the order of the table: "data", "checkpoint".
std::vector<std::string> groups_of(const Program& program) {
  std::vector<std::string> groups;
  for (const Command& command : program.commands) {
    const std::vector<std::string> words = split_words(command.path);
    if (words.size() == 2 && std::find(groups.begin(), groups.end(), words[0]) == groups.end())
      groups.push_back(words[0]);
  }
  return groups;
}

std::vector<std::string> names_in_group(const Program& program, const std::string& group) {
  std::vector<std::string> names;
  for (const Command& command : program.commands)
    if (command.path.starts_with(group + " ")) names.push_back(command.path.substr(group.size() + 1));
  return names;
}

std::vector<std::string> first_words(const Program& program) {
  std::vector<std::string> names;
  for (const Command& command : program.commands) {
    const std::string word = split_words(command.path)[0];
    if (std::find(names.begin(), names.end(), word) == names.end()) names.push_back(word);
  }
  names.emplace_back("completion");
  return names;
}

void print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
}

// The arguments after `path`, joined as a user sees them.
std::string see_help(const Program& program, const std::string& path) {
  return fmt::format("see `{}{}{} --help`", program.name, path.empty() ? "" : " ", path);
}

}  // namespace

// Reads the arguments of one command against its table.
class CommandParser {
 public:
  CommandParser(const Program& program, const Command& command) : program_(program), command_(command) {
    for (const Option& option : command.options) {
      arguments_.standard_[option.name] = option.standard;
      names_.push_back(option.name);
    }
    for (const Positional& positional : command.positionals) arguments_.standard_[positional.name] = "";
    names_.emplace_back("--help");
  }

  Arguments parse(const std::vector<std::string>& words) {
    bool options_end = false;
    for (size_t i = 0; i < words.size(); ++i) {
      const std::string& word = words[i];
      if (!options_end && word == "--") {
        options_end = true;
      } else if (!options_end && word.size() > 1 && word[0] == '-') {
        i = option(words, i);
      } else {
        positional(word);
      }
    }
    for (const Option& option : command_.options)
      if (option.required && !arguments_.has(option.name))
        fail("{} {} is missing", option.name, option.value);
    for (const Positional& positional : command_.positionals)
      if (positional.required && !arguments_.has(positional.name)) fail("{} is missing", positional.name);
    return std::move(arguments_);
  }

 private:
  template <class... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    throw UsageError("{}: {}; {}", command_.path, fmt::format(format, std::forward<Args>(args)...),
                     see_help(program_, command_.path));
  }

  // Reads the option at words[i]; returns the index of its last word.
  size_t option(const std::vector<std::string>& words, size_t i) {
    const size_t equals = words[i].find('=');
    const std::string name = words[i].substr(0, equals);
    const auto found = std::find_if(command_.options.begin(), command_.options.end(),
                                    [&](const Option& candidate) { return candidate.name == name; });
    if (found == command_.options.end()) fail("unknown option {}{}", name, did_you_mean(name, names_));
    std::vector<std::string>& values = arguments_.given_[name];
    if (!values.empty() && !found->repeatable && !takes_many(found->value)) fail("{} is given twice", name);
    if (found->value.empty()) {
      if (equals != std::string::npos) fail("{} takes no value", name);
      values.emplace_back("true");
    } else if (equals != std::string::npos) {
      add_value(*found, words[i].substr(equals + 1), values);
    } else {
      const bool many = takes_many(found->value);
      const size_t first = i + 1;
      while (i + 1 < words.size() && !words[i + 1].starts_with("--") && (many || i + 1 == first))
        add_value(*found, words[++i], values);
      if (i + 1 == first) fail("{} needs a value, {}", name, found->value);
    }
    return i;
  }

  void add_value(const Option& option, const std::string& value, std::vector<std::string>& values) const {
    const std::vector<std::string>& choices = option.choices;
    if (!choices.empty() && std::find(choices.begin(), choices.end(), value) == choices.end())
      fail("{} is \"{}\"; legal values are {}{}", option.name, value, join(choices),
           did_you_mean(value, choices));
    values.push_back(value);
  }

  void positional(const std::string& word) {
    for (const Positional& positional : command_.positionals) {
      if (arguments_.has(positional.name) && !takes_many(positional.name)) continue;
      arguments_.given_[positional.name].push_back(word);
      return;
    }
    fail("unexpected argument \"{}\"", word);
  }

  const Program& program_;
  const Command& command_;
  std::vector<std::string> names_;
  Arguments arguments_;
};

bool Arguments::has(const std::string& name) const {
  const auto given = given_.find(name);
  TRANSXSSM_CHECK(given != given_.end() || standard_.contains(name), "option {} is not in the table", name);
  return given != given_.end() && !given->second.empty();
}

std::string Arguments::text(const std::string& name) const {
  return has(name) ? given_.at(name).back() : standard_.at(name);
}

std::vector<std::string> Arguments::list(const std::string& name) const {
  if (has(name)) return given_.at(name);
  const std::string& standard = standard_.at(name);
  return standard.empty() ? std::vector<std::string>{} : std::vector<std::string>{standard};
}

int64_t Arguments::integer(const std::string& name, int64_t min, int64_t max) const {
  const std::string value = text(name);
  int64_t number = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error == std::errc::result_out_of_range ||
      (error == std::errc() && end == value.data() + value.size())) {
    const bool low = error != std::errc() ? value[0] == '-' : number < min;
    const bool high = error != std::errc() ? value[0] != '-' : number > max;
    if (low || high)
      throw UsageError("{} {} is out of range; the nearest legal value is {}", name, value, low ? min : max);
    return number;
  }
  throw UsageError("{} \"{}\" is not a whole number", name, value);
}

double Arguments::number(const std::string& name, double min, double max) const {
  const std::string value = text(name);
  double number = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error != std::errc() || end != value.data() + value.size() || !std::isfinite(number))
    throw UsageError("{} \"{}\" is not a finite number", name, value);
  if (number < min || number > max)
    throw UsageError("{} {} is out of range; the nearest legal value is {}", name, value,
                     number < min ? min : max);
  return number;
}

int run_program(const Program& program, const std::vector<std::string>& arguments) {
  const auto is_help = [](const std::string& word) { return word == "--help" || word == "-h"; };
  if (arguments.empty() || is_help(arguments[0]) || (arguments[0] == "help" && arguments.size() == 1)) {
    print(program_help(program));
    return arguments.empty() ? static_cast<int>(ExitCode::usage) : 0;
  }
  std::vector<std::string> words = arguments;
  if (words[0] == "help") {  // `help data tokenize` is `data tokenize --help`
    words.erase(words.begin());
    words.emplace_back("--help");
  }
  if (words[0] == "--version") {
    print(program.version);
    return 0;
  }
  if (words[0] == "completion") {
    if (words.size() != 2 || words[1] != "bash")
      throw UsageError("completion: legal values are bash; type `source <({} completion bash)`",
                       program.name);
    print(bash_completion(program));
    return 0;
  }

  const std::vector<std::string> groups = groups_of(program);
  const bool in_group = std::find(groups.begin(), groups.end(), words[0]) != groups.end();
  if (in_group && (words.size() == 1 || is_help(words[1]))) {
    print(program_help(program, words[0]));
    return words.size() == 1 ? static_cast<int>(ExitCode::usage) : 0;
  }
  const std::string path = in_group ? words[0] + " " + words[1] : words[0];
  const auto command = std::find_if(program.commands.begin(), program.commands.end(),
                                    [&](const Command& candidate) { return candidate.path == path; });
  if (command == program.commands.end()) {
    const std::string& word = words[in_group ? 1 : 0];
    throw UsageError("unknown {} \"{}\"{}; {}", word[0] == '-' ? "option" : "command", path,
                     did_you_mean(word, in_group ? names_in_group(program, words[0]) : first_words(program)),
                     see_help(program, in_group ? words[0] : ""));
  }
  words.erase(words.begin(), words.begin() + (in_group ? 2 : 1));
  const auto end = std::find(words.begin(), words.end(), "--");
  if (std::any_of(words.begin(), end, is_help)) {
    print(command_help(program, *command));
    return 0;
  }
  return command->run(CommandParser(program, *command).parse(words));
}

}  // namespace transxssm
