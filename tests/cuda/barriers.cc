// For barriers.py: whether a barrier or wait of a kernel is kept or left out. Built without the thread
// sanitizer.
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <fstream>
#include <set>
#include <string>

#include "tests/support/cuda/block.h"

namespace {

const char* setting(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

// "kernel" of "kernel<float, 4>" and of "folder::kernel".
std::string plain_name(const std::string& name) {
  const std::string stem = name.substr(0, name.find('<'));
  const size_t begin = stem.find_last_of(": (&");
  return begin == std::string::npos ? stem : stem.substr(begin + 1);
}

const int deleted = std::atoi(setting("DELETED_STATEMENT"));
const std::string* const in_kernel = new std::string(setting("DELETED_IN_KERNEL"));
const char* const note_file = std::getenv("NOTE_STATEMENTS");

struct LastNote {
  std::string kernel;
  const testing::TestInfo* test = nullptr;
};

// Appends "statement kernel test" to the file, once each.
void note(int statement, const std::string& kernel) {
  static std::array<LastNote, 1024> last;
  static std::set<std::string> noted;
  LastNote& before = last.at(static_cast<size_t>(statement));
  const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
  if (!test || (before.test == test && before.kernel == kernel)) return;
  before = {kernel, test};
  const std::string line = std::to_string(statement) + " " + plain_name(kernel) + " " +
                           test->test_suite_name() + "." + test->name() + "\n";
  if (noted.insert(line).second) std::ofstream(note_file, std::ios::app) << line;
}

}  // namespace

// Called in place of each statement; numbers begin with 1.
bool keep_statement(int statement) {
  if (!note_file && statement != deleted) return true;
  const std::string& kernel = transxssm::cuda::emulated::current_block().shape().name;
  if (note_file) note(statement, kernel);
  return statement != deleted || plain_name(kernel) != *in_kernel;
}
