// The files that options name for what a command has to tell besides (--json, --plot, --trace, --write).
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/output_file.h"

namespace transxssm {

// Opens the output before the work (runtime/output_file.h): what cannot be written, or would destroy
// something, is refused. Null where `path` is empty. One rank does it.
std::unique_ptr<OutputFiles> option_output(const std::string& path, bool overwrite,
                                           std::vector<std::string> inputs = {});

// Whether the file is there and begins with `head`: what an earlier start wrote may be replaced without a
// question.
bool begins_with(const std::string& path, std::string_view head);

}  // namespace transxssm
