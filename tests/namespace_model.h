// SPDX-License-Identifier: Apache-2.0
// What a POSIX namespace must answer, kept in memory: the oracle of the cross-mount coherence tests. Paths are relative to a
// mount and have no symbolic links but as their last component.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace distfuse::tests {

struct ModelInode {
  mode_t mode = 0;
  nlink_t nlink = 1;
  std::vector<char> data;  ///< Regular files.
  std::string target;      ///< Symbolic links.
  std::map<std::string, std::string> xattrs;
  std::map<std::string, std::shared_ptr<ModelInode>> entries;  ///< Directories.

  [[nodiscard]] bool is_directory() const { return S_ISDIR(mode); }
  [[nodiscard]] bool is_file() const { return S_ISREG(mode); }
};

using ModelFile = std::shared_ptr<ModelInode>;

/// Every operation answers 0 or the errno value that Linux gives (ext4's choice where POSIX leaves one).
class NamespaceModel {
 public:
  NamespaceModel() : root_(make(S_IFDIR | 0755)) { root_->nlink = 2; }

  [[nodiscard]] ModelFile find(const std::string& path) const {
    if (path.empty()) return root_;
    const auto [parent, name] = split(path);
    const ModelFile directory = find(parent);
    if (directory == nullptr || !directory->is_directory()) return nullptr;
    const auto entry = directory->entries.find(name);
    return entry == directory->entries.end() ? nullptr : entry->second;
  }

  /// Of the way to the last component: ENOENT, ENOTDIR or 0.
  [[nodiscard]] int walk(const std::string& path) const {
    const auto [parent, name] = split(path);
    if (parent.empty()) return 0;
    if (const int error = walk(parent); error != 0) return error;
    const ModelFile directory = find(parent);
    if (directory == nullptr || S_ISLNK(directory->mode)) return ENOENT;  // all links here dangle
    return directory->is_directory() ? 0 : ENOTDIR;
  }

  [[nodiscard]] int create(const std::string& path, mode_t mode, bool exclusive, ModelFile& out) {
    if (const int error = walk(path); error != 0) return error;
    if ((out = find(path)) != nullptr) {
      if (exclusive) return EEXIST;
      return out->is_directory() ? EISDIR : 0;
    }
    out = insert(path, make(S_IFREG | mode));
    return 0;
  }

  [[nodiscard]] int mkdir(const std::string& path, mode_t mode) {
    if (const int error = walk(path); error != 0) return error;
    if (find(path) != nullptr) return EEXIST;
    insert(path, make(S_IFDIR | mode))->nlink = 2;
    ++parent_of(path)->nlink;
    return 0;
  }

  [[nodiscard]] int symlink(const std::string& target, const std::string& path) {
    if (const int error = walk(path); error != 0) return error;
    if (find(path) != nullptr) return EEXIST;
    insert(path, make(S_IFLNK | 0777))->target = target;
    return 0;
  }

  [[nodiscard]] int link(const std::string& from, const std::string& to) {
    if (const int error = walk(from); error != 0) return error;
    const ModelFile file = find(from);
    if (file == nullptr) return ENOENT;
    if (const int error = walk(to); error != 0) return error;
    if (find(to) != nullptr) return EEXIST;
    if (file->is_directory()) return EPERM;
    insert(to, file);
    ++file->nlink;
    return 0;
  }

  [[nodiscard]] int unlink(const std::string& path) {
    if (const int error = walk(path); error != 0) return error;
    const ModelFile file = find(path);
    if (file == nullptr) return ENOENT;
    if (file->is_directory()) return EISDIR;
    --file->nlink;
    erase(path);
    return 0;
  }

  [[nodiscard]] int rmdir(const std::string& path) {
    if (const int error = walk(path); error != 0) return error;
    const ModelFile directory = find(path);
    if (directory == nullptr) return ENOENT;
    if (!directory->is_directory()) return ENOTDIR;
    if (!directory->entries.empty()) return ENOTEMPTY;
    --parent_of(path)->nlink;
    erase(path);
    return 0;
  }

  [[nodiscard]] int rename(const std::string& from, const std::string& to, bool noreplace) {
    if (const int error = walk(from); error != 0) return error;
    if (const int error = walk(to); error != 0) return error;
    const ModelFile source = find(from);
    const ModelFile target = find(to);
    if (source == nullptr) return ENOENT;
    if (noreplace && target != nullptr) return EEXIST;
    if (source->is_directory() && to.compare(0, from.size() + 1, from + "/") == 0) return EINVAL;
    if (target != nullptr && from.compare(0, to.size() + 1, to + "/") == 0) return ENOTEMPTY;
    if (source == target) return 0;
    if (target != nullptr) {
      if (source->is_directory() && !target->is_directory()) return ENOTDIR;
      if (!source->is_directory() && target->is_directory()) return EISDIR;
      if (target->is_directory() && !target->entries.empty()) return ENOTEMPTY;
      if (target->is_directory()) --parent_of(to)->nlink;
      --target->nlink;
      erase(to);
    }
    if (source->is_directory()) {
      --parent_of(from)->nlink;
      ++parent_of(to)->nlink;
    }
    erase(from);
    insert(to, source);
    return 0;
  }

  static std::pair<std::string, std::string> split(const std::string& path) {
    const auto slash = path.rfind('/');
    if (slash == std::string::npos) return {"", path};
    return {path.substr(0, slash), path.substr(slash + 1)};
  }

 private:
  static ModelFile make(mode_t mode) {
    auto inode = std::make_shared<ModelInode>();
    inode->mode = mode;
    return inode;
  }
  [[nodiscard]] ModelFile parent_of(const std::string& path) const {
    return find(split(path).first);
  }
  ModelFile insert(const std::string& path, ModelFile inode) {
    return parent_of(path)->entries[split(path).second] = std::move(inode);
  }
  void erase(const std::string& path) { parent_of(path)->entries.erase(split(path).second); }

  ModelFile root_;
};

}  // namespace distfuse::tests
