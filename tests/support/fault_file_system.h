// A disk in memory whose users can be killed, refused or cut short at any call, and which can lose power:
// what was not synced is then dropped, kept or torn. Each rank opens the shared disk through a
// FaultFileSystem of its own.
#pragma once

#include <cerrno>
#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <system_error>
#include <thread>

#include "runtime/file_system.h"
#include "runtime/rng.h"

namespace transxssm {

// The end of a process: no std::exception, so nothing that handles errors sees it.
struct ProcessKilled {};

class Disk {
 public:
  struct Node {
    bool is_directory = false;
    std::string data;          // what readers see
    std::string durable;       // what power loss leaves
    bool sync_failed = false;  // the kernel dropped its dirty pages: later syncs succeed and save nothing
    std::map<std::string, std::shared_ptr<Node>> entries;
    std::map<std::string, std::shared_ptr<Node>> durable_entries;
    // Changes of entries since the last sync of this directory; a null node removes the name. A rename is one
    // change.
    std::vector<std::map<std::string, std::shared_ptr<Node>>> pending;
  };

  Disk() : root_(std::make_shared<Node>()) { root_->is_directory = true; }
  Disk(const Disk& other) : capacity(other.capacity), root_(clone(other)) {}
  Disk& operator=(const Disk& other) {
    root_ = clone(other);
    capacity = other.capacity;
    return *this;
  }

  enum class Unsynced { dropped, names_kept, random };
  // What a machine finds after its power failed. names_kept: directories are as they were, files are not: the
  // usual cause of files of zero length. random: any subset of the changes of directories; files old, new or
  // torn.
  void lose_power(Unsynced mode, uint64_t seed = 0) {
    draws_ = 0;
    std::set<Node*> seen;
    lose_power(*root_, mode, Rng(seed, "power loss"), seen);
  }

  std::string* contents(const std::string& path) {
    const auto node = find(path);
    return node == nullptr || node->is_directory ? nullptr : &node->data;
  }

  int64_t capacity = INT64_MAX;

 private:
  friend class FaultFileSystem;
  using NodePtr = std::shared_ptr<Node>;
  using Clones = std::map<const Node*, NodePtr>;

  static NodePtr clone(const Disk& other) {
    Clones clones;
    return clone(other.root_, clones);
  }
  static NodePtr clone(const NodePtr& from, Clones& clones) {
    if (from == nullptr) return nullptr;
    NodePtr& to = clones[from.get()];
    if (to != nullptr) return to;
    to = std::make_shared<Node>(*from);
    const NodePtr result = to;
    for (auto* map : {&result->entries, &result->durable_entries}) {
      for (auto& [name, node] : *map) node = clone(NodePtr(node), clones);
    }
    for (auto& change : result->pending) {
      for (auto& [name, node] : change) node = clone(NodePtr(node), clones);
    }
    return result;
  }

  uint64_t draw(const Rng& rng, uint64_t bound) { return rng.below(draws_++, bound); }

  void lose_power(Node& node, Unsynced mode, const Rng& rng, std::set<Node*>& seen) {
    if (!seen.insert(&node).second) return;
    if (!node.is_directory) {
      if (mode == Unsynced::random && node.data != node.durable) {
        const uint64_t choice = draw(rng, 3);
        if (choice == 0) node.durable = node.data;
        if (choice == 1)
          node.durable = node.data.substr(0, draw(rng, node.data.size() + 1)) + std::string(7, '\0');
      }
      node.data = node.durable;
      return;
    }
    std::vector<std::map<std::string, NodePtr>> kept;
    for (const auto& change : node.pending) {
      if (mode == Unsynced::names_kept || (mode == Unsynced::random && draw(rng, 2) == 1))
        kept.push_back(change);
    }
    for (const auto& change : kept) apply(change, node.durable_entries);
    node.pending.clear();
    node.entries = node.durable_entries;
    for (auto& [name, child] : node.entries) lose_power(*child, mode, rng, seen);
  }

  static void apply(const std::map<std::string, NodePtr>& change, std::map<std::string, NodePtr>& entries) {
    for (const auto& [name, node] : change) {
      if (node == nullptr) {
        entries.erase(name);
      } else {
        entries[name] = node;
      }
    }
  }

  static void change(Node& directory, std::map<std::string, NodePtr> names) {
    apply(names, directory.entries);
    directory.pending.push_back(std::move(names));
  }

  static std::vector<std::string> split(const std::string& path) {
    std::vector<std::string> parts;
    for (size_t at = 0; at < path.size();) {
      const size_t end = std::min(path.find('/', at), path.size());
      if (end > at) parts.push_back(path.substr(at, end - at));
      at = end + 1;
    }
    return parts;
  }

  NodePtr find(const std::string& path) const {
    NodePtr node = root_;
    for (const std::string& name : split(path)) {
      const auto at = node->entries.find(name);
      if (at == node->entries.end()) return nullptr;
      node = at->second;
    }
    return node;
  }

  int64_t used(const Node& node) const {
    auto bytes = static_cast<int64_t>(node.data.size());
    for (const auto& [name, child] : node.entries) bytes += used(*child);
    return bytes;
  }

  NodePtr root_;
  uint64_t draws_ = 0;
  std::recursive_mutex mutex_;
};

class FaultFileSystem : public FileSystem {
 public:
  enum class Fault { none, kill, fail_once, fail_from };

  explicit FaultFileSystem(Disk& disk) : disk_(disk) {}

  // At the `operation`-th call from now (1 = the next) the process ends, or the call, or it and all later
  // ones, fail with `error`. A write that fails or is killed has written half.
  void arm(Fault fault, int64_t operation, int error = EIO) {
    fault_ = fault;
    at_ = operation;
    error_ = error;
    count_ = 0;
    fired_ = false;
  }
  int64_t operations() const { return count_; }
  // Every call takes at least so long.
  void slow_down(std::chrono::milliseconds delay) { delay_ = delay; }
  bool fired() const { return fired_; }

  std::unique_ptr<WritableFile> create(const std::string& path) override {
    const std::lock_guard lock(disk_.mutex_);
    step("create", path, true);
    auto [directory, name] = parent(path);
    if (directory->entries.contains(name)) fail(EEXIST, "create", path);
    const auto node = std::make_shared<Disk::Node>();
    Disk::change(*directory, {{name, node}});
    return std::make_unique<Writer>(*this, node, path);
  }

  std::unique_ptr<ReadableFile> open(const std::string& path) override {
    const std::lock_guard lock(disk_.mutex_);
    step("open", path, false);
    const auto node = disk_.find(path);
    if (node == nullptr) fail(ENOENT, "open", path);
    if (node->is_directory) fail(EISDIR, "open", path);
    return std::make_unique<Reader>(*this, node, path);
  }

  void create_directory(const std::string& path, int) override {
    const std::lock_guard lock(disk_.mutex_);
    step("mkdir", path, true);
    auto [directory, name] = parent(path);
    if (directory->entries.contains(name)) fail(EEXIST, "mkdir", path);
    const auto node = std::make_shared<Disk::Node>();
    node->is_directory = true;
    Disk::change(*directory, {{name, node}});
  }

  void set_default_mode(const std::string& path) override {
    const std::lock_guard lock(disk_.mutex_);
    step("chmod", path, false);
    if (disk_.find(path) == nullptr) fail(ENOENT, "chmod", path);
  }

  void rename(const std::string& from, const std::string& to) override {
    const std::lock_guard lock(disk_.mutex_);
    step("rename", from + " to " + to, false);
    auto [directory, name] = parent(from);
    auto [to_directory, to_name] = parent(to);
    const auto node = disk_.find(from);
    if (node == nullptr) fail(ENOENT, "rename", from);
    const auto target = disk_.find(to);
    if (target != nullptr && target->is_directory) fail(ENOTEMPTY, "rename", to);
    if (directory != to_directory)
      fail(EXDEV, "rename", to);  // not needed; two directories would be two changes
    Disk::change(*directory, {{name, nullptr}, {to_name, node}});
  }

  void remove(const std::string& path) override {
    const std::lock_guard lock(disk_.mutex_);
    step("remove", path, false);
    auto [directory, name] = parent(path);
    const auto node = disk_.find(path);
    if (node == nullptr) fail(ENOENT, "remove", path);
    if (!node->entries.empty()) fail(ENOTEMPTY, "remove", path);
    Disk::change(*directory, {{name, nullptr}});
  }

  void sync_directory(const std::string& path) override {
    const std::lock_guard lock(disk_.mutex_);
    step("sync directory", path, false);
    const auto node = disk_.find(path);
    if (node == nullptr) fail(ENOENT, "sync", path);
    node->durable_entries = node->entries;
    node->pending.clear();
  }

  std::vector<std::string> list(const std::string& path) override {
    const std::lock_guard lock(disk_.mutex_);
    step("list", path, false);
    const auto node = disk_.find(path);
    if (node == nullptr) fail(ENOENT, "list", path);
    std::vector<std::string> names;
    for (const auto& [name, child] : node->entries) names.push_back(name);
    return names;
  }

  bool exists(const std::string& path) override {
    const std::lock_guard lock(disk_.mutex_);
    step("exists", path, false);
    return disk_.find(path) != nullptr;
  }

  bool is_directory(const std::string& path) override {
    const std::lock_guard lock(disk_.mutex_);
    step("is directory", path, false);
    const auto node = disk_.find(path);
    return node != nullptr && node->is_directory;
  }

  int64_t free_bytes(const std::string& path) override {
    const std::lock_guard lock(disk_.mutex_);
    step("free bytes", path, false);
    return disk_.capacity - disk_.used(*disk_.root_);
  }

 private:
  class Writer : public WritableFile {
   public:
    Writer(FaultFileSystem& files, std::shared_ptr<Disk::Node> node, std::string path)
        : files_(files), node_(std::move(node)), path_(std::move(path)) {}
    void write(std::span<const std::byte> bytes) override {
      const std::lock_guard lock(files_.disk_.mutex_);
      const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      files_.step("write", path_, true, [&] { node_->data += text.substr(0, text.size() / 2); });
      const int64_t room = files_.disk_.capacity - files_.disk_.used(*files_.disk_.root_);
      if (static_cast<int64_t>(text.size()) > room) {
        node_->data += text.substr(0, static_cast<size_t>(std::max<int64_t>(room, 0)));
        fail(ENOSPC, "write", path_);
      }
      node_->data += text;
    }
    void sync() override {
      const std::lock_guard lock(files_.disk_.mutex_);
      files_.step("sync", path_, false, [&] { node_->sync_failed = true; });
      if (!node_->sync_failed) node_->durable = node_->data;
    }
    void close() override {
      const std::lock_guard lock(files_.disk_.mutex_);
      files_.step("close", path_, false);
    }

   private:
    FaultFileSystem& files_;
    std::shared_ptr<Disk::Node> node_;
    std::string path_;
  };

  class Reader : public ReadableFile {
   public:
    Reader(FaultFileSystem& files, std::shared_ptr<Disk::Node> node, std::string path)
        : files_(files), node_(std::move(node)), path_(std::move(path)) {}
    int64_t size() const override { return static_cast<int64_t>(node_->data.size()); }
    void read(int64_t offset, std::span<std::byte> bytes) const override {
      const std::lock_guard lock(files_.disk_.mutex_);
      files_.step("read", path_, false);
      if (offset < 0 || offset + static_cast<int64_t>(bytes.size()) > size()) fail(ENODATA, "read", path_);
      if (!bytes.empty()) std::memcpy(bytes.data(), node_->data.data() + offset, bytes.size());
    }

   private:
    FaultFileSystem& files_;
    std::shared_ptr<Disk::Node> node_;
    std::string path_;
  };

  [[noreturn]] static void fail(int error, const std::string& operation, const std::string& path) {
    throw std::system_error(error, std::generic_category(), "cannot " + operation + " " + path);
  }

  // Counts the call and, where it is the one, lets it fail; `partly` is what then happens all the same.
  void step(
      const char* operation, const std::string& path, bool needs_space,
      const std::function<void()>& partly = [] {}) {
    ++count_;
    if (delay_.count() > 0) std::this_thread::sleep_for(delay_);
    if (fault_ == Fault::none || count_ < at_) return;
    if (fault_ == Fault::kill) {
      if (!fired_) partly();
      fired_ = true;
      throw ProcessKilled();
    }
    if (fault_ == Fault::fail_once && count_ > at_) return;
    if ((error_ == ENOSPC || error_ == EDQUOT) && !needs_space)
      return;  // a full disk still reads and renames
    fired_ = true;
    partly();
    fail(error_, operation, path);
  }

  std::pair<std::shared_ptr<Disk::Node>, std::string> parent(const std::string& path) {
    const auto parts = Disk::split(path);
    std::string directory = "/";
    for (size_t i = 0; i + 1 < parts.size(); ++i) directory += parts[i] + "/";
    const auto node = disk_.find(directory);
    if (node == nullptr || parts.empty()) fail(ENOENT, "find the directory of", path);
    if (!node->is_directory) fail(ENOTDIR, "find the directory of", path);
    return {node, parts.back()};
  }

  Disk& disk_;
  Fault fault_ = Fault::none;
  int64_t at_ = 0;
  int error_ = EIO;
  std::chrono::milliseconds delay_{0};
  int64_t count_ = 0;
  bool fired_ = false;
};

}  // namespace transxssm
