// The command line: one table of commands, each with its options, help and an example. Everything a user can
// type is in that table; parsing, --help, hints for typing mistakes and shell completion follow from it.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

namespace transxssm {

struct Option {
  std::string name;        // with dashes: "--config"
  std::string value = {};  // placeholder: "FILE"; "FILE..." takes one or more; empty: a flag
  std::string help = {};
  std::string standard = {};  // default, as a user would type it; empty: none
  bool repeatable = false;    // may be given several times
  bool required = false;
  std::string group = "Options";          // heading in --help
  std::vector<std::string> choices = {};  // legal values, where there is a list
};

struct Positional {
  std::string name;  // "DIR"; "DIR..." takes all that are left
  std::string help = {};
  bool required = true;
};

// What the user gave. Names are those of the table ("--config", "DIR"); asking for another name is a bug.
class Arguments {
 public:
  bool has(const std::string& name) const;  // given by the user
  bool flag(const std::string& name) const { return has(name); }
  // The value, or the default of the table, or "".
  std::string text(const std::string& name) const;
  // Every value, in the order given; the default, if any, where none was.
  std::vector<std::string> list(const std::string& name) const;
  // A whole number in [min, max]; throws UsageError naming the option and the nearest legal value.
  int64_t integer(const std::string& name, int64_t min = std::numeric_limits<int64_t>::min(),
                  int64_t max = std::numeric_limits<int64_t>::max()) const;
  // A finite number in [min, max]; throws likewise.
  double number(const std::string& name, double min = std::numeric_limits<double>::lowest(),
                double max = std::numeric_limits<double>::max()) const;

 private:
  friend class CommandParser;
  std::map<std::string, std::vector<std::string>> given_;
  std::map<std::string, std::string> standard_;  // every name of the command, with its default
};

struct Command {
  std::string path;     // "train", "data tokenize"
  std::string summary;  // one line, no full stop
  std::string example;  // a whole command line that works
  std::vector<Option> options = {};
  std::vector<Positional> positionals = {};
  std::function<int(const Arguments&)> run;  // returns the exit code of the process
  bool parallel = false;                     // may run as several ranks, under mpirun or srun
};

struct Program {
  std::string name;
  std::string summary;
  std::string version;  // what --version prints
  std::vector<Command> commands;
};

// Finds the command, reads its arguments and runs it; --help, --version and `completion bash` print to
// standard output. Throws UsageError with a hint for anything that is not in the table.
int run_program(const Program& program, const std::vector<std::string>& arguments);

// The text of --help for one command, or for the program where `command` is null (a group such as "data"
// where `group` is not empty).
std::string command_help(const Program& program, const Command& command);
std::string program_help(const Program& program, const std::string& group = "");
// A script for bash: `source <(transxssm completion bash)`.
std::string bash_completion(const Program& program);

}  // namespace transxssm
