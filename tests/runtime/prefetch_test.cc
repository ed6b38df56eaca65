#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>

#include "runtime/data/sampler.h"
#include "tests/support/temporary_directory.h"

namespace transxssm {
namespace {

// A file mapped to see which of its pages are in memory.
class Residency {
 public:
  explicit Residency(const std::string& path) : file_(::open(path.c_str(), O_RDONLY)) {
    struct stat info {};
    ::fstat(file_, &info);
    size_ = static_cast<size_t>(info.st_size);
    map_ = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file_, 0);
  }
  ~Residency() {
    ::munmap(map_, size_);
    ::close(file_);
  }
  void evict() const { ::posix_fadvise(file_, 0, 0, POSIX_FADV_DONTNEED); }
  bool has(size_t begin, size_t bytes) const {
    const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE)), first = begin / page;
    std::vector<unsigned char> pages((begin + bytes - 1) / page - first + 1);
    ::mincore(static_cast<char*>(map_) + first * page, pages.size() * page, pages.data());
    return std::all_of(pages.begin(), pages.end(), [](unsigned char p) { return (p & 1) != 0; });
  }

 private:
  int file_;
  size_t size_ = 0;
  void* map_ = nullptr;
};

TEST(TrainingData, PrefetchBringsTheNextRowsFromStorage) {
  constexpr int64_t kTokens = 4096, kSample = 17;
  std::vector<int32_t> ids(6'000'000);
  std::iota(ids.begin(), ids.end(), 0);
  const TemporaryDirectory directory;
  const std::string prefix = directory / "set";
  {
    TokenFileWriter writer(posix_file_system(), prefix, 6'000'000, false);
    writer.add_tokens(ids);
    writer.end_document();
    writer.finish({});
  }
  TrainingDataSpec spec = {.sources = {{prefix}}, .seed = 4, .tokens = kTokens, .vocab_size = 6'000'000};
  Carver count;
  Batch::carve(count, 1, kTokens);
  const Arena memory(count.used());
  Carver carver = memory.carver();
  const Batch row = Batch::carve(carver, 1, kTokens);
  TrainingData(spec).fill(kSample, row);
  const auto begin = static_cast<size_t>(row.input.at<int32_t>({0, 0})) * 4;
  const TokenFileSummary summary = TokenFile(prefix).summary();
  const Residency bin(prefix + ".bin");
  bin.evict();
  if (bin.has(begin, 4 * (kTokens + 1))) GTEST_SKIP() << "this file system keeps files in memory";
  spec.sources[0].file = std::make_shared<const TokenFile>(prefix, summary);
  const TrainingData data(spec);
  EXPECT_FALSE(bin.has(begin, 4 * (kTokens + 1)));
  data.prefetch(kSample, 1);
  for (int i = 0; i < 500 && !bin.has(begin, 4 * (kTokens + 1)); ++i) ::usleep(10000);
  EXPECT_TRUE(bin.has(begin, 4 * (kTokens + 1)));
}

}  // namespace
}  // namespace transxssm
