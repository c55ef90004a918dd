// SPDX-License-Identifier: Apache-2.0
// One metadata operation's view of the database: inodes are loaded once and changed in memory, entries and the rest go into a
// write batch; commit() writes it all at once. Dropped without commit(), nothing has happened.
//
// Only inodes are read back after a change within one transaction. An entry, an xattr or a registration is read before it is
// changed, at most once per name.
#pragma once

#include <rocksdb/write_batch.h>

#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/result.h"
#include "storaged/meta/records.h"
#include "storaged/meta/store_database.h"

namespace distfuse::storaged {

struct Inode : InodeRecord {
  bool changed = false;
  bool removed = false;

  [[nodiscard]] rpc::Ino ino() const { return attributes.ino; }
  [[nodiscard]] std::uint32_t type() const;
  [[nodiscard]] bool is_directory() const;
};

/// Inode numbers, counted up. Blocks of them are reserved by a synced write before the first of a block is given out: after a
/// power cut no number comes again whose chunks may already lie at a data target.
class InoAllocator {
 public:
  InoAllocator(StoreDatabase& database, std::uint64_t block, rpc::Ino last)
      : database_(database), block_(block), last_(last) {}
  /// Error: EIO.
  Status load();
  /// Error: ENOSPC: all are used; EIO.
  [[nodiscard]] Result<rpc::Ino> allocate();

 private:
  StoreDatabase& database_;
  std::uint64_t block_;
  rpc::Ino last_;
  rpc::Ino next_ = rpc::kRootIno + 1;
  rpc::Ino reserved_ = rpc::kRootIno + 1;  ///< First number that is not reserved.
};

class Transaction {
 public:
  explicit Transaction(StoreDatabase& database) : database_(database) {}

  /// Error: ENOENT, EIO. The pointer holds as long as the transaction.
  [[nodiscard]] Result<Inode*> inode(rpc::Ino ino);
  /// A directory that has a name. Error: ENOENT, ENOTDIR, EIO.
  [[nodiscard]] Result<Inode*> directory(rpc::Ino ino);
  /// The inode that an entry names: it must exist. Error: EIO.
  [[nodiscard]] Result<Inode*> named_inode(rpc::Ino parent, const EntryRecord& entry);
  /// The parent of a directory as the database has it, without keeping the inode. Error: EIO.
  [[nodiscard]] Result<rpc::Ino> stored_parent(rpc::Ino ino);
  Inode& add_inode(const InodeRecord& record);
  /// Takes the inode, its orphan record and xattrs and, for a regular file, leaves a purge job.
  /// Error: EIO.
  Status remove_inode(Inode& inode);

  [[nodiscard]] Result<std::optional<EntryRecord>> entry(rpc::Ino parent, const std::string& name);
  /// Writes the name; the parent's record is the caller's business.
  void put_entry(rpc::Ino parent, const std::string& name, const EntryRecord& entry);
  void erase_entry(rpc::Ino parent, const std::string& name, const EntryRecord& entry);

  void put_open(rpc::Ino ino, rpc::SessionId session);
  void erase_open(rpc::Ino ino, rpc::SessionId session);
  /// Some session other than `except` has the inode open. Error: EIO.
  [[nodiscard]] Result<bool> open_elsewhere(rpc::Ino ino, rpc::SessionId except);

  /// The inode's grace begins.
  void add_orphan(rpc::Ino ino, rpc::Timestamp since);
  /// The inode is an orphan no longer: it was opened, or it is gone.
  void remove_orphan(rpc::Ino ino);

  [[nodiscard]] StoreDatabase& database() { return database_; }
  [[nodiscard]] rocksdb::WriteBatch& batch() { return batch_; }
  [[nodiscard]] std::int64_t inodes_added() const { return inodes_added_; }
  [[nodiscard]] std::int64_t purges_added() const { return purges_added_; }
  [[nodiscard]] const auto& orphans_added() const { return orphans_added_; }
  [[nodiscard]] const auto& orphans_removed() const { return orphans_removed_; }

  /// Forgets all changes.
  void discard();
  /// Error: ENOSPC, EIO.
  Status commit();

 private:
  StoreDatabase& database_;
  rocksdb::WriteBatch batch_;
  std::deque<Inode> inodes_;  ///< Few: a linear search is the fastest.
  std::int64_t inodes_added_ = 0;
  std::int64_t purges_added_ = 0;
  std::vector<std::pair<rpc::Ino, rpc::Timestamp>> orphans_added_;
  std::vector<rpc::Ino> orphans_removed_;
};

}  // namespace distfuse::storaged
