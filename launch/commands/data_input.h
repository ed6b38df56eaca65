// What the data commands that read text have in common.
#pragma once

#include <vector>

#include "launch/command.h"
#include "runtime/data/text_reader.h"

namespace transxssm {

// --input and how to read it, followed by the command's own options.
std::vector<Option> with_input(std::vector<Option> options);
// `tokenizer`: what the text is cut for, or null; lives as long as the reader.
TextReaderOptions reader_options(const Arguments& arguments, const Tokenizer* tokenizer = nullptr);
// Says what happened to the text on its way in.
void report_reader(const TextReader& reader);

inline const Option kOverwriteOption = {.name = "--overwrite", .help = "replace what is there"};

}  // namespace transxssm
