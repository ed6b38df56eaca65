#include "runtime/file_system.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstring>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <functional>
#include <system_error>

namespace transxssm {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class FileSystemTest : public testing::Test {
 protected:
  FileSystemTest() {
    std::string pattern = testing::TempDir() + "file_system_XXXXXX";
    directory_ = ::mkdtemp(pattern.data());
  }
  ~FileSystemTest() override { std::filesystem::remove_all(directory_); }

  std::string path(const std::string& name) const { return directory_ + "/" + name; }
  void put(const std::string& name, const std::string& text) const { std::ofstream(path(name)) << text; }
  std::string get(const std::string& name) const {
    std::ifstream in(path(name));
    return {std::istreambuf_iterator<char>(in), {}};
  }
  // The call must fail with this errno, and name `part` in its message.
  static void expect_error(const std::function<void()>& call, int error, const std::string& part) {
    try {
      call();
      ADD_FAILURE() << "no error, expected " << std::strerror(error) << " for " << part;
    } catch (const std::system_error& e) {
      EXPECT_EQ(e.code().value(), error) << e.what();
      EXPECT_THAT(e.what(), HasSubstr(part));
      EXPECT_THAT(e.what(), HasSubstr(std::strerror(error)));
    }
  }

  std::string directory_;
  FileSystem& files_ = posix_file_system();
};

TEST_F(FileSystemTest, WritesAndReads) {
  const std::string text(3'000'000, 'x');
  write_new_file(files_, path("a"), text + "end");
  EXPECT_EQ(read_file(files_, path("a"), 4'000'000), text + "end");
  const auto file = files_.open(path("a"));
  EXPECT_EQ(file->size(), 3'000'003);
  std::array<std::byte, 3> tail;
  file->read(3'000'000, tail);
  EXPECT_EQ(std::memcmp(tail.data(), "end", 3), 0);
  expect_error([&] { file->read(3'000'001, tail); }, ENODATA, path("a"));
  expect_error([&] { read_file(files_, path("a"), 3'000'002); }, EFBIG, path("a"));
}

TEST_F(FileSystemTest, CreateRefusesWhatExists) {
  put("a", "old");
  expect_error([&] { files_.create(path("a")); }, EEXIST, path("a"));
  ASSERT_EQ(::symlink(path("target").c_str(), path("link").c_str()), 0);
  expect_error([&] { files_.create(path("link")); }, EEXIST, path("link"));
  EXPECT_FALSE(files_.exists(path("target")));
  expect_error([&] { files_.create(path("none/a")); }, ENOENT, path("none/a"));
  EXPECT_EQ(get("a"), "old");
}

TEST_F(FileSystemTest, OpensRegularFilesOnly) {
  put("a", "text");
  ASSERT_EQ(::symlink(path("a").c_str(), path("link").c_str()), 0);
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  files_.create_directory(path("d"), 0700);
  expect_error([&] { files_.open(path("link")); }, ELOOP, path("link"));
  expect_error([&] { files_.open(path("pipe")); }, EINVAL, path("pipe"));
  expect_error([&] { files_.open(path("d")); }, EISDIR, path("d"));
  expect_error([&] { files_.open(path("none")); }, ENOENT, path("none"));
}

TEST_F(FileSystemTest, WriteErrorsCarryTheSystemsReason) {
  // A limit on file sizes makes the kernel write less than asked, then fail.
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{1000, old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  expect_error([&] { write_new_file(files_, path("a"), std::string(5000, 'x')); }, EFBIG, path("a"));
  ::setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(std::filesystem::file_size(path("a")), 1000u);
}

TEST_F(FileSystemTest, Directories) {
  create_directories(files_, path("a/b/c"));
  create_directories(files_, path("a/b/c"));
  EXPECT_TRUE(files_.is_directory(path("a/b/c")));
  put("a/b/x", "1");
  put("a/b/.hidden", "2");
  EXPECT_THAT(files_.list(path("a/b")), ElementsAre(".hidden", "c", "x"));
  expect_error([&] { files_.remove(path("a")); }, ENOTEMPTY, path("a"));
  expect_error([&] { files_.create_directory(path("a"), 0700); }, EEXIST, path("a"));
  expect_error([&] { create_directories(files_, path("a/b/x/y")); }, EEXIST, path("a/b/x"));
  put("kept", "kept");
  ASSERT_EQ(::symlink(path("kept").c_str(), path("a/b/link").c_str()), 0);
  ASSERT_EQ(::symlink(directory_.c_str(), path("a/b/up").c_str()), 0);
  remove_all(files_, path("a"));
  EXPECT_THAT(files_.list(directory_), ElementsAre("kept"));
  expect_error([&] { files_.list(path("a")); }, ENOENT, path("a"));
  EXPECT_FALSE(files_.is_directory(path("kept")));
  files_.sync_directory(directory_);
  EXPECT_GT(files_.free_bytes(directory_), 0);
}

TEST_F(FileSystemTest, ModeOfDirectories) {
  struct stat status {};
  files_.create_directory(path("d"), 0700);
  ::stat(path("d").c_str(), &status);
  EXPECT_EQ(status.st_mode & 0777, 0700u);
  files_.set_default_mode(path("d"));
  files_.create_directory(path("plain"), 0777);
  const mode_t changed = (::stat(path("d").c_str(), &status), status.st_mode);
  ::stat(path("plain").c_str(), &status);
  EXPECT_EQ(changed, status.st_mode);
}

TEST_F(FileSystemTest, ReplacesAtomically) {
  write_file_atomically(files_, path("a"), "one");
  put("a.tmp", "left by a crash");
  write_file_atomically(files_, path("a"), "two");
  EXPECT_EQ(get("a"), "two");
  EXPECT_THAT(files_.list(directory_), ElementsAre("a"));
  files_.create_directory(path("d"), 0700);
  EXPECT_THROW(write_file_atomically(files_, path("d"), "three"), std::system_error);
  EXPECT_THAT(files_.list(directory_), ElementsAre("a", "d"));
}

}  // namespace
}  // namespace transxssm
