// What a manifest must say beside the form of its fields.
#pragma once

#include <string>

#include "checkpoint/manifest.h"

namespace transxssm {

// Throws CheckpointError naming `file` unless the files are exactly those that this program makes, in its
// order, no tensor occurs twice, and ties lead to stored tensors.
void check_manifest(const Manifest& manifest, const std::string& file);

// False where a manifest cannot have this as one of `count` files or more: known before all are read.
bool may_be_listed(const FileRef& ref, size_t count);

}  // namespace transxssm
