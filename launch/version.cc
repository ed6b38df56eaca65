#include "launch/version.h"

#include <fmt/format.h>
#include <google/protobuf/stubs/common.h>
#include <mpi.h>
#include <omp.h>

#include "version_info.h"

namespace transxssm {
namespace {

std::string mpi_library() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  MPI_Get_library_version(text, &length);  // allowed before MPI_Init
  const std::string version(text, static_cast<size_t>(length));
  return version.substr(0, version.find_first_of(",\n"));
}

}  // namespace

std::string short_version() {
  return fmt::format("{} ({})", TRANSXSSM_VERSION, TRANSXSSM_COMMIT);
}

std::string version_text() {
  return fmt::format(
      "transxssm {}\n"
      "commit     {}\n"
      "compiler   {} {}, {}\n"
      "backends   {}\n"
      "libraries  {}, OpenMP {}, protobuf {}, {}\n",
      TRANSXSSM_VERSION, TRANSXSSM_COMMIT, TRANSXSSM_COMPILER, __VERSION__, TRANSXSSM_BUILD_TYPE,
      TRANSXSSM_BACKENDS, mpi_library(), _OPENMP,
      google::protobuf::internal::VersionString(GOOGLE_PROTOBUF_VERSION), TRANSXSSM_LIBRARIES);
}

}  // namespace transxssm
