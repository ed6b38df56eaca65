// The house rules that a compiler does not check: which folder may include which, and the shape of files.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace transxssm {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxLines = 400;

// A -> B: files in A may include files in B. Siblings (kernels and parallel; model and checkpoint) do not see
// each other.
const std::map<std::string, std::set<std::string>> kArrows = {
    {"runtime", {"runtime"}},
    {"kernels", {"kernels", "runtime"}},
    {"parallel", {"parallel", "runtime"}},
    {"model", {"model", "kernels", "parallel", "runtime"}},
    {"checkpoint", {"checkpoint", "parallel", "runtime"}},
    {"launch", {"launch", "model", "checkpoint", "kernels", "parallel", "runtime"}},
    {"tests", {"tests", "launch", "model", "checkpoint", "kernels", "parallel", "runtime"}},
};

// Libraries with large headers stay behind the folder that uses them: never in a header that others include.
// launch/ is at the top, so its headers may name its own messages.
const std::regex kHiddenLibrary(R"((mpi\.h|nccl\.h|cuda.*|cublas.*|oneapi/dnnl/.*|dnnl.*|hwy/.*))");
const std::regex kProtobuf(R"((google/protobuf/.*|.*\.pb\.h))");
// The file that picks the devices of a build with CUDA.
constexpr const char* kBackends = "launch/backends_cuda.cc";
// A CUDA header of ours may name CUDA types: it is included by .cu files alone.
bool is_cuda_side(const std::string& path) {
  return path.find("/cuda/") != std::string::npos;
}
// Parts of .cc files that are compiled once for each instruction set.
bool is_inline_part(const std::string& path) {
  return path.ends_with("-inl.h");
}
bool is_header(const std::string& path) {
  return path.ends_with(".h") && !is_inline_part(path);
}

struct Include {
  int line;
  std::string target;
};

std::vector<std::string> read_lines(const fs::path& path) {
  std::ifstream in(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

std::vector<Include> includes(const std::vector<std::string>& lines) {
  static const std::regex pattern(R"(\s*#\s*include\s*["<]([^">]+)[">].*)");
  std::vector<Include> out;
  std::smatch found;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (std::regex_match(lines[i], found, pattern)) out.push_back({static_cast<int>(i) + 1, found[1]});
  }
  return out;
}

std::string first_folder(const std::string& path) {
  const size_t slash = path.find('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

// What is wrong with the include lines of a file, each as "file:line: ...".
std::vector<std::string> arrow_faults(const std::string& path, const std::vector<std::string>& lines) {
  std::vector<std::string> faults;
  const std::string from = first_folder(path);
  for (const auto& [line, target] : includes(lines)) {
    const std::string where = path + ":" + std::to_string(line) + ": ";
    const std::string to = first_folder(target);
    if (kArrows.contains(to) && !kArrows.at(from).contains(to)) {
      faults.push_back(where + from + " may not include " + to + " (" + target + ")");
    }
    if (target.starts_with("."))
      faults.push_back(where + "write includes from the root of the tree (" + target + ")");
    const bool hidden =
        std::regex_match(target, kHiddenLibrary) || (from != "launch" && std::regex_match(target, kProtobuf));
    if (hidden && is_header(path) && !is_cuda_side(path)) {
      faults.push_back(where + target + " belongs into a .cc file");
    }
    if (path.ends_with(".cc") && from != "tests" && path != kBackends && is_cuda_side(target)) {
      faults.push_back(where + "only .cu files and the file that picks the device include " + target);
    }
  }
  return faults;
}

// Every file of the folders, relative to the tree, that satisfies `wanted`.
template <class Predicate>
std::vector<std::string> files(Predicate wanted) {
  std::vector<std::string> out;
  for (const auto& [folder, arrows] : kArrows) {
    for (const auto& entry : fs::recursive_directory_iterator(fs::path(SOURCE_TREE) / folder)) {
      if (entry.is_regular_file() && wanted(entry.path())) {
        out.push_back(fs::relative(entry.path(), SOURCE_TREE).generic_string());
      }
    }
  }
  std::sort(out.begin(), out.end());
  return out;
}

bool is_code(const fs::path& path) {
  static const std::set<std::string> extensions = {".h", ".cc", ".cu", ".cuh"};
  return extensions.contains(path.extension().string());
}

bool is_text(const fs::path& path) {
  static const std::set<std::string> extensions = {".proto",  ".textproto", ".sh",  ".py",
                                                   ".sbatch", ".cmake",     ".txt", ".md"};
  return is_code(path) || extensions.contains(path.extension().string());
}

std::string joined(const std::vector<std::string>& lines) {
  std::string out;
  for (const std::string& line : lines) out += "\n  " + line;
  return out;
}

TEST(House, ArrowsPointDown) {
  std::vector<std::string> faults;
  const auto sources = files(is_code);
  ASSERT_GT(sources.size(), 20u) << "the source tree is not at " << SOURCE_TREE;
  for (const std::string& path : sources) {
    for (const std::string& fault : arrow_faults(path, read_lines(fs::path(SOURCE_TREE) / path)))
      faults.push_back(fault);
  }
  EXPECT_TRUE(faults.empty()) << joined(faults);
}

TEST(House, TheArrowCheckSeesForbiddenOnes) {
  const auto faults = [](const std::string& path, const std::string& line) {
    return arrow_faults(path, {line}).size();
  };
  EXPECT_EQ(faults("kernels/cpu/gemm.cc", "#include \"parallel/mesh.h\""), 1u);
  EXPECT_EQ(faults("parallel/mesh.cc", "  #  include <kernels/gemm.h>  // sum"), 1u);
  EXPECT_EQ(faults("runtime/tensor.h", "#include \"model/config.h\""), 1u);
  EXPECT_EQ(faults("checkpoint/plan.cc", "#include \"model/config.h\""), 1u);
  EXPECT_EQ(faults("model/head.cc", "#include \"checkpoint/plan.h\""), 1u);
  EXPECT_EQ(faults("parallel/mpi_communicator.h", "#include <mpi.h>"), 1u);
  EXPECT_EQ(faults("model/config.h", "#include \"model/model.pb.h\""), 1u);
  EXPECT_EQ(faults("runtime/stream.cc", "#include \"../kernels/gemm.h\""), 1u);
  EXPECT_EQ(faults("runtime/metrics.cc", "#include \"runtime/cuda/device.h\""), 1u);
  EXPECT_EQ(faults("parallel/mpi_communicator.cc", "#include <mpi.h>"), 0u);
  EXPECT_EQ(faults("model/head.cc", "#include \"kernels/gemm.h\""), 0u);
  EXPECT_EQ(faults("launch/main.cc", "// #include \"nothing\""), 0u);
}

TEST(House, FilesAreShortWithoutTabs) {
  std::vector<std::string> faults;
  for (const std::string& path : files(is_text)) {
    const auto lines = read_lines(fs::path(SOURCE_TREE) / path);
    if (lines.size() > kMaxLines) {
      faults.push_back(path + ": " + std::to_string(lines.size()) + " lines, at most " +
                       std::to_string(kMaxLines));
    }
    for (size_t i = 0; i < lines.size(); ++i) {
      const std::string where = path + ":" + std::to_string(i + 1) + ": ";
      if (lines[i].find('\t') != std::string::npos) faults.push_back(where + "a tab");
      if (!lines[i].empty() && (lines[i].back() == ' ' || lines[i].back() == '\r'))
        faults.push_back(where + "space at the end");
    }
  }
  EXPECT_TRUE(faults.empty()) << joined(faults);
}

TEST(House, HeadersAreIncludedOnce) {
  std::vector<std::string> faults;
  for (const std::string& path : files([](const fs::path& p) { return is_header(p.string()); })) {
    const auto lines = read_lines(fs::path(SOURCE_TREE) / path);
    if (std::find(lines.begin(), lines.end(), "#pragma once") == lines.end())
      faults.push_back(path + ": no #pragma once");
  }
  EXPECT_TRUE(faults.empty()) << joined(faults);
}

TEST(House, EveryFolderExplainsItself) {
  for (const auto& [folder, arrows] : kArrows) {
    const fs::path readme = fs::path(SOURCE_TREE) / folder / "README.md";
    ASSERT_TRUE(fs::exists(readme)) << folder << "/README.md is missing";
    const auto lines = read_lines(readme).size();
    EXPECT_GE(lines, 5u) << folder << "/README.md says nothing";
    EXPECT_LE(lines, 70u) << folder << "/README.md is longer than a screen";
  }
  for (const char* name : {"README.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE"}) {
    EXPECT_TRUE(fs::exists(fs::path(SOURCE_TREE) / name)) << name << " is missing";
  }
}

}  // namespace
}  // namespace transxssm
