// `data train-tokenizer`, `data tokenize`, `data inspect`: from text to token files.
#pragma once

#include <vector>

#include "launch/command.h"

namespace transxssm {

std::vector<Command> data_commands();

// Its parts, one a file.
Command train_tokenizer_command();
Command tokenize_command();
Command inspect_command();

}  // namespace transxssm
