#include "launch/commands/data.h"

namespace transxssm {

std::vector<Command> data_commands() {
  return {train_tokenizer_command(), tokenize_command(), inspect_command()};
}

}  // namespace transxssm
