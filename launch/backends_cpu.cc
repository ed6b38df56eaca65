#include "launch/backends.h"

namespace transxssm {

void register_backends() {}

}  // namespace transxssm
