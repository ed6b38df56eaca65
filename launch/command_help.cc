// Help and shell completion of the table in launch/command.h.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "launch/command.h"
#include "launch/nearest.h"

namespace transxssm {
namespace {

constexpr size_t kLeft = 28;  // column of the explanations
constexpr size_t kWidth = 100;

// "  left      text", wrapped.
std::string entry(const std::string& left, const std::string& text) {
  std::string out = "  " + left;
  size_t column = out.size();
  const auto new_line = [&] {
    out += "\n" + std::string(kLeft, ' ');
    column = kLeft;
  };
  if (column + 2 > kLeft) {
    new_line();
  } else {
    out += std::string(kLeft - column, ' ');
    column = kLeft;
  }
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    if (column > kLeft && column + 1 + word.size() > kWidth) new_line();
    if (column > kLeft) {
      out += ' ';
      ++column;
    }
    out += word;
    column += word.size();
    begin = end + 1;
  }
  return out + "\n";
}

std::string option_entry(const Option& option) {
  std::string text = option.help;
  if (!option.choices.empty()) text += fmt::format(" ({})", join(option.choices));
  if (option.required) text += " [required]";
  if (!option.standard.empty()) text += fmt::format(" [default: {}]", option.standard);
  if (option.repeatable) text += " [may be repeated]";
  return entry(option.name + (option.value.empty() ? "" : " " + option.value), text);
}

}  // namespace

std::string command_help(const Program& program, const Command& command) {
  std::string text = fmt::format("{}\n\nExample:\n  {}\n\nUsage: {} {}", command.summary, command.example,
                                 program.name, command.path);
  for (const Positional& positional : command.positionals)
    text += positional.required ? " " + positional.name : " [" + positional.name + "]";
  for (const Option& option : command.options)
    if (option.required) text += fmt::format(" {} {}", option.name, option.value);
  text += command.options.empty() ? "\n" : " [options]\n";
  if (!command.positionals.empty()) {
    text += "\nArguments:\n";
    for (const Positional& positional : command.positionals) text += entry(positional.name, positional.help);
  }
  std::vector<std::string> groups;
  for (const Option& option : command.options)
    if (std::find(groups.begin(), groups.end(), option.group) == groups.end()) groups.push_back(option.group);
  for (const std::string& group : groups) {
    text += fmt::format("\n{}:\n", group);
    for (const Option& option : command.options)
      if (option.group == group) text += option_entry(option);
  }
  return text;
}

std::string program_help(const Program& program, const std::string& group) {
  std::string text;
  if (group.empty()) text = program.summary + "\n\n";
  const Command* first = nullptr;
  for (const Command& command : program.commands)
    if (first == nullptr && (group.empty() || command.path.starts_with(group + " "))) first = &command;
  if (first != nullptr) text += fmt::format("Example:\n  {}\n\n", first->example);
  text += fmt::format("Usage: {}{}{} COMMAND [arguments]\n\nCommands:\n", program.name,
                      group.empty() ? "" : " ", group);
  for (const Command& command : program.commands)
    if (group.empty() || command.path.starts_with(group + " ")) text += entry(command.path, command.summary);
  if (group.empty())
    text +=
        entry("completion bash", "Print a completion script: source <(" + program.name + " completion bash)");
  text += fmt::format("\n`{}{}{} COMMAND --help` explains one command, with an example.\n", program.name,
                      group.empty() ? "" : " ", group);
  if (group.empty())
    text += fmt::format("`{} --version` names the version, compiler and libraries.\n", program.name);
  return text;
}

std::string bash_completion(const Program& program) {
  std::set<std::string> first{"completion", "--help", "--version"};
  std::set<std::string> groups;
  std::string cases;
  for (const Command& command : program.commands) {
    const size_t space = command.path.find(' ');
    first.insert(command.path.substr(0, space));
    if (space != std::string::npos) groups.insert(command.path.substr(0, space));
    std::string options;
    for (const Option& option : command.options) {
      options += option.name + " ";
      if (!option.choices.empty()) {
        std::string choices;
        for (const std::string& choice : option.choices) choices += (choices.empty() ? "" : " ") + choice;
        cases += fmt::format("    '{} {}') words='{}' ;;\n", command.path, option.name, choices);
      }
    }
    cases += fmt::format("    '{}'*) words='{}--help' ;;\n", command.path, options);
  }
  for (const std::string& group : groups) {
    std::string names;
    for (const Command& command : program.commands)
      if (command.path.starts_with(group + " ")) names += command.path.substr(group.size() + 1) + " ";
    cases += fmt::format("    '{} '*) words='{}--help' ;;\n", group, names);
  }
  std::string top;
  for (const std::string& word : first) top += (top.empty() ? "" : " ") + word;
  // The key of a case is the command followed by the word before the cursor, so that choices of an option
  // come before the options of its command.
  return fmt::format(
      "_{0}() {{\n"
      "  local current=\"${{COMP_WORDS[COMP_CWORD]}}\" previous=\"${{COMP_WORDS[COMP_CWORD-1]}}\" words=''\n"
      "  local command=\"${{COMP_WORDS[1]}}\"\n"
      "  case \"$command\" in {1}) [ \"$COMP_CWORD\" -gt 2 ] && command+=\" ${{COMP_WORDS[2]}}\" ;; esac\n"
      "  [ \"$COMP_CWORD\" = 1 ] && command='' && words='{2}'\n"
      "  case \"$command $previous\" in\n{3}  esac\n"
      "  COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
      "}}\n"
      "complete -o default -F _{0} {0}\n",
      program.name, groups.empty() ? "''" : fmt::format("{}", fmt::join(groups, "|")), top, cases);
}

}  // namespace transxssm
