#include "runtime/output_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <functional>

#include "runtime/error.h"
#include "tests/support/counting_file_system.h"
#include "tests/support/temporary_directory.h"

namespace transxssm {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class OutputFileTest : public testing::Test {
 protected:
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(directory_.path()))
      found.push_back(entry.path().filename());
    std::sort(found.begin(), found.end());
    return found;
  }
  void put(OutputFiles& outputs, size_t target, const std::string& text) const {
    const auto file = outputs.create(outputs.temporary(target));
    file->write(std::as_bytes(std::span(text)));
    file->sync();
    file->close();
  }
  std::string get(const std::string& name) const { return TemporaryDirectory::read(directory_ / name); }
  // What is wrong with the outputs, found before any work; the directory stays as it was.
  std::string refused(std::vector<std::string> targets, OutputRules rules = {}) const {
    const std::vector<std::string> before = names();
    std::string message;
    try {
      OutputFiles(posix_file_system(), std::move(targets), std::move(rules));
    } catch (const UsageError& error) {
      message = error.what();
    }
    EXPECT_EQ(names(), before);
    return message;
  }
  // The exit code and signal of a child that does this.
  static int in_child(const std::function<void()>& work) {
    const pid_t child = ::fork();
    if (child == 0) {
      try {
        work();
      } catch (...) {
        ::_exit(99);
      }
      ::_exit(0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return status;
  }

  const TemporaryDirectory directory_;
  FileSystem& files_ = posix_file_system();
};

TEST_F(OutputFileTest, NothingIsSeenBeforeAllOfItIsPublished) {
  OutputFiles outputs(files_, {directory_ / "d.bin", directory_ / "d.idx"}, {});
  put(outputs, 0, "one");
  put(outputs, 1, "two");
  for (const std::string& name : names()) EXPECT_EQ(name[0], '.') << name;
  outputs.publish();
  EXPECT_EQ(get("d.bin") + get("d.idx"), "onetwo");
}

TEST_F(OutputFileTest, LeavesNothingBehind) {
  {
    OutputFiles outputs(files_, {directory_ / "a"}, {});
    put(outputs, 0, "half");
    outputs.create(outputs.scratch());
    files_.create_directory(outputs.scratch(), 0700);
    EXPECT_EQ(names().size(), 4u);  // and the lock
  }
  EXPECT_THAT(names(), IsEmpty());
  OutputFiles(files_, {directory_ / "a"}, {}).publish_text("text");
  EXPECT_THAT(names(), ElementsAre("a"));
}

TEST_F(OutputFileTest, ReplacesOnlyWhatTheUserSaid) {
  directory_.write("a", "old");
  EXPECT_THAT(refused({directory_ / "new", directory_ / "a"}), HasSubstr("/a exists; choose another output"));
  ASSERT_EQ(::symlink("nothing", (directory_ / "link").c_str()), 0);
  EXPECT_THAT(refused({directory_ / "link"}), HasSubstr("exists"));
  OutputFiles(files_, {directory_ / "a"}, {.overwrite = true}).publish_text("new");
  EXPECT_EQ(get("a"), "new");
  // What comes up while the work goes on is not replaced either.
  OutputFiles outputs(files_, {directory_ / "b"}, {});
  directory_.write("b", "another's");
  EXPECT_THROW(outputs.publish_text("mine"), OutputError);
  EXPECT_EQ(get("b"), "another's");
}

TEST_F(OutputFileTest, InputsAreNeverReplaced) {
  const std::string input = directory_.write("in.json", "input");
  ASSERT_EQ(::symlink("in.json", (directory_ / "link").c_str()), 0);
  ASSERT_EQ(::link(input.c_str(), (directory_ / "hard").c_str()), 0);
  for (const char* name : {"in.json", "link", "hard", "../in.json", "./in.json"}) {
    const std::string path = name[0] == '.' && name[1] == '.'
                                 ? directory_.path() + "/../" + directory_.path().substr(5) + "/in.json"
                                 : directory_ / name;
    EXPECT_THAT(refused({path}, {.overwrite = true, .inputs = {"none", input}}),
                HasSubstr("is read by this command"))
        << path;
    EXPECT_THAT(refused({input}, {.overwrite = true, .inputs = {path}}), HasSubstr("is read by this command"))
        << path;
  }
  // A directory that is read: its files stay, new ones may come.
  const OutputRules reads_directory{.overwrite = true, .inputs = {directory_.path()}};
  EXPECT_THAT(refused({input}, reads_directory), HasSubstr("is read by this command"));
  EXPECT_EQ(refused({directory_ / "new"}, reads_directory), "");
  EXPECT_EQ(get("in.json"), "input");
}

TEST_F(OutputFileTest, ALinkIsReplacedItself) {
  directory_.write("store", "kept");
  ASSERT_EQ(::symlink("store", (directory_ / "link").c_str()), 0);
  OutputFiles(files_, {directory_ / "link"}, {.overwrite = true}).publish_text("new");
  EXPECT_EQ(get("store"), "kept");
  EXPECT_EQ(get("link"), "new");
}

TEST_F(OutputFileTest, PlacesThatTakeNoFileAreFoundFirst) {
  EXPECT_THAT(refused({directory_ / "no/such/a"}), HasSubstr("mkdir -p"));
  directory_.write("file", "");
  EXPECT_THAT(refused({directory_ / "file/a"}), HasSubstr("mkdir -p"));
  EXPECT_THAT(refused({""}), HasSubstr("no name"));
  EXPECT_THAT(refused({directory_.path() + "/"}), HasSubstr("no name"));
  EXPECT_THAT(refused({directory_.path()}, {.overwrite = true}), HasSubstr("is a directory"));
  EXPECT_THAT(refused({directory_ / std::string(256, 'x')}), HasSubstr("File name too long"));
  OutputFiles(files_, {directory_ / std::string(255, 'x')}, {}).publish_text("a long name");
  EXPECT_THAT(refused({"/proc/a"}), HasSubstr("takes no new file"));
  ASSERT_EQ(::mkfifo((directory_ / "pipe").c_str(), 0600), 0);
  EXPECT_THAT(refused({directory_ / "a", directory_ / "pipe"}, {.overwrite = true}), HasSubstr("regular"));
}

TEST_F(OutputFileTest, DevicesAndPipesAreWrittenInPlace) {
  OutputFiles(files_, {"/dev/null"}, {}).publish_text("text");
  struct stat info {};
  ASSERT_EQ(::stat("/dev/null", &info), 0);
  EXPECT_TRUE(S_ISCHR(info.st_mode));
  ASSERT_EQ(::mkfifo((directory_ / "pipe").c_str(), 0600), 0);
  const int status = in_child([&] {
    const int reader = ::open((directory_ / "pipe").c_str(), O_RDWR);
    OutputFiles(files_, {directory_ / "pipe"}, {}).publish_text("text");
    char text[9] = "";
    ::_exit(::read(reader, text, 8) == 4 && std::string(text) == "text" ? 0 : 1);
  });
  EXPECT_EQ(status, 0);
  EXPECT_THAT(names(), ElementsAre("pipe"));
}

TEST_F(OutputFileTest, TwoJobsWithOneOutput) {
  OutputFiles first(files_, {directory_ / "d.bin", directory_ / "d.idx"}, {});
  EXPECT_THAT(refused({directory_ / "d.idx"}), HasSubstr("d.idx is being written by process "));
  EXPECT_EQ(refused({directory_ / "d.json"}), "");
  EXPECT_THAT(refused({directory_ / "e", directory_ / "e"}), HasSubstr("being written"));
  // A process that is killed holds nothing, and what it left goes with the next job of that output alone.
  const int status = in_child([&] {
    OutputFiles killed(files_, {directory_ / "a"}, {});
    put(killed, 0, "half");
    ::kill(::getpid(), SIGKILL);
  });
  EXPECT_TRUE(WIFSIGNALED(status));
  const auto of_a = [&] {
    const auto found = names();
    return std::count_if(found.begin(), found.end(),
                         [](const auto& name) { return name.starts_with(".a."); });
  };
  EXPECT_EQ(of_a(), 2);
  put(first, 0, "one");
  put(first, 1, "two");
  OutputFiles(files_, {directory_ / "a"}, {}).publish_text("whole");
  EXPECT_EQ(of_a(), 0);
  first.publish();
  EXPECT_EQ(get("d.bin") + get("d.idx"), "onetwo");
}

TEST_F(OutputFileTest, SignalsRemoveWhatIsUnfinished) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) {
    const int status = in_child([&] {
      remove_unfinished_files_on_signals();
      OutputFiles outputs(files_, {directory_ / "a"}, {});
      put(outputs, 0, "half");
      ::raise(signal);
    });
    ASSERT_TRUE(WIFSIGNALED(status)) << signal << " " << status;
    EXPECT_EQ(WTERMSIG(status), signal);
    EXPECT_THAT(names(), IsEmpty()) << signal;
  }
}

TEST_F(OutputFileTest, AFullDiskIsAnErrorOfTheOutput) {
  const int status = in_child([&] {
    remove_unfinished_files_on_signals();
    const rlimit small{1000, 1000};
    ::setrlimit(RLIMIT_FSIZE, &small);
    int code = 0;
    try {
      OutputFiles(files_, {directory_ / "a"}, {}).publish_text(std::string(5000, 'x'));
    } catch (const OutputError& error) {
      code = static_cast<int>(error.code());
    }
    ::_exit(code);
  });
  EXPECT_EQ(WEXITSTATUS(status), 9);
  EXPECT_THAT(names(), IsEmpty());
}

TEST_F(OutputFileTest, NoMomentShowsAMix) {
  // The process ends before each call in turn; a reader takes what has d.idx for a dataset.
  int64_t operations = 0;
  for (int64_t at = 0; at == 0 || at <= operations; ++at) {
    for (const char* name : {"d.bin", "d.json", "d.idx"}) directory_.write(name, "old");
    CountingFileSystem counting(files_, at, [] { ::_exit(7); });
    const auto work = [&] {
      OutputFiles outputs(counting, {directory_ / "d.bin", directory_ / "d.json", directory_ / "d.idx"},
                          {.overwrite = true});
      for (size_t i = 0; i < 3; ++i) put(outputs, i, "new");
      outputs.publish();
    };
    if (at == 0) {
      work();
      operations = counting.operations();
      EXPECT_GT(operations, 10);
    } else {
      EXPECT_EQ(WEXITSTATUS(in_child(work)), 7) << at;
    }
    if (std::filesystem::exists(directory_ / "d.idx")) {
      EXPECT_EQ(get("d.bin"), get("d.idx")) << at;
      EXPECT_EQ(get("d.json"), get("d.idx")) << at;
    }
  }
}

}  // namespace
}  // namespace transxssm
