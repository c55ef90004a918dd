// SPDX-License-Identifier: Apache-2.0
// The embedded metadata store.
//
// Parties: the owner thread (execute, orphans, purges), a sync thread (sync), readers of counters.
// One request is one transaction is one write batch, with its reply record in it; operations run one after the other, which
// is all the serialisation that the namespace needs. What a batch changes is also kept in memory only where a search would be
// dear (reply ids, fenced sessions, orphans, counts), and there only after the batch was written.
// A request is refused before anything else when its session is fenced. Then: a retry is answered from its record, a late
// copy of an answered request is ESTALE, a fresh one runs. Reads are not recorded: to run them twice is harmless.
// FenceSession writes the fence first, then takes the session's registrations a thousand at a time; lockd repeats it until it
// is answered, so a crash in between leaves nothing undone.
// An inode's way out: no name → no registration, an orphan in its grace (orphan_list.h) → removed, with a purge job. An orphan that
// is opened is an open inode again. Orphans of a fenced session have their grace as well: another client may be about to open.
// Recovery: RocksDB replays its log; reply ids, fences, orphans and the inode counter are read back.
// Limits: those of operations.h and RocksdbMetadataOptions; fences: those since the last list of the living (fenced_below.h). Known weakness:
// FenceSession looks through all registrations of the store (some 2 million a second).
#include "storaged/meta/rocksdb_metadata_store.h"

#include <sys/stat.h>
#include <unistd.h>

#include <ctime>
#include <unordered_set>

#include "storaged/fenced_below.h"
#include "storaged/identity.h"
#include "storaged/meta/operations.h"
#include "storaged/meta/orphan_list.h"
#include "storaged/meta/reply_log.h"

namespace distfuse::storaged {
namespace {

const std::string kInodesUsedKey = "inodes_used";
const std::string kFencedPrefix = "fenced";
const std::string kFencedBelowKey = "below_fenced";  // Not a key with the prefix above.
const std::string kIncarnationKey = "lockd_incarnation";
constexpr std::size_t kRegistrationsPerBatch = 1000;
constexpr std::size_t kOrphansPerReap = 1000;  // some 10 ms of the owner thread
constexpr int kGracePartWhenShort = 10;

rpc::Timestamp system_clock_now() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return {now.tv_sec * 1'000'000'000 + now.tv_nsec};
}

template <typename Request, typename... Changing>
inline constexpr bool kOneOf = (std::is_same_v<Request, Changing> || ...);

template <typename Request>
inline constexpr bool kChanges =
    kOneOf<Request, rpc::SetAttributes, rpc::Create, rpc::Symlink, rpc::Link, rpc::Unlink,
           rpc::Rmdir, rpc::Rename, rpc::OpenFile, rpc::CloseFiles, rpc::SetXattr,
           rpc::RemoveXattr>;

/// Read by any thread, written by the owner alone.
class Counter {
 public:
  void set(std::uint64_t value) { value_.store(value, std::memory_order_relaxed); }
  void add(std::int64_t change) { set(get() + static_cast<std::uint64_t>(change)); }
  [[nodiscard]] std::uint64_t get() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

class RocksdbMetadataStore final : public MetadataStore {
 public:
  RocksdbMetadataStore(RocksdbMetadataOptions options, StoreClaim claim,
                       std::unique_ptr<StoreDatabase> database)
      : options_(std::move(options)),
        claim_(std::move(claim)),
        database_(std::move(database)),
        inos_(*database_, options_.ino_block, options_.max_ino),
        replies_(*database_, options_.max_replies_per_session),
        orphans_(*database_) {
    if (!options_.clock) options_.clock = system_clock_now;
  }

  Status load();

  rpc::MetadataReply execute(const rpc::RequestContext& context,
                             const rpc::MetadataRequest& request) override;
  Status sync() override { return database_->sync(); }
  Result<bool> reap_orphans(bool short_of_space) override;
  Result<std::vector<PurgeJob>> pending_purges(std::size_t limit) override;
  Status purged(rpc::Ino ino) override;
  Status cover_fences(rpc::SessionId high, std::span<const rpc::SessionId> living) override;
  [[nodiscard]] std::uint64_t incarnation() const override { return incarnation_; }
  Status note_incarnation(std::uint64_t incarnation) override;
  [[nodiscard]] MetadataCounters counters() const override;

 private:
  template <typename Request>
  rpc::MetadataReply dispatch(const rpc::RequestContext& context, const Request& request);
  template <typename Request>
  rpc::MetadataReply change(const rpc::RequestContext& context, const Request& request);
  template <typename Request>
  rpc::MetadataReply run_fresh(const rpc::RequestContext& context, const Request& request);
  Status commit(Transaction& transaction);
  Status fence(rpc::SessionId session);
  Status drop_registrations(rpc::SessionId session);
  Status make_root();
  Status load_counts();
  Result<std::uint64_t> load_number(const std::string& key);
  Status load_fences();

  RocksdbMetadataOptions options_;
  StoreClaim claim_;
  std::unique_ptr<StoreDatabase> database_;
  InoAllocator inos_;
  ReplyLog replies_;
  OrphanList orphans_;
  std::unordered_set<rpc::SessionId> fenced_;
  FencedBelow below_;
  std::uint64_t incarnation_ = 0;
  Counter operations_, errors_, replayed_, refused_, inodes_, orphan_count_, purges_,
      reply_records_, fenced_count_;
};

rpc::MetadataReply error_reply(int code) {
  rpc::MetadataReply reply;
  reply.error = code;
  return reply;
}

rpc::MetadataReply to_reply(const Status& status) {
  return error_reply(status.ok() ? 0 : status.error().code);
}

// ---- opening

Status RocksdbMetadataStore::make_root() {
  Transaction transaction(*database_);
  const auto root = transaction.inode(rpc::kRootIno);
  if (root.ok()) return {};
  if (root.error().code != ENOENT) return root.error();
  InodeRecord record;
  auto& attributes = record.attributes;
  attributes.ino = record.parent = rpc::kRootIno;
  attributes.mode = S_IFDIR | 0755;
  attributes.nlink = 2;
  attributes.uid = geteuid();
  attributes.gid = getegid();
  attributes.atime = attributes.mtime = attributes.ctime = attributes.btime = options_.clock();
  transaction.add_inode(record);
  return commit(transaction);
}

/// 0: it is not there.
Result<std::uint64_t> RocksdbMetadataStore::load_number(const std::string& key) {
  rocksdb::PinnableSlice value;
  const auto found = database_->get(Family::system, key, &value);
  if (!found.ok()) return found.error();
  if (!*found) return std::uint64_t{0};
  const auto number = decode_number(StoreDatabase::view(value));
  if (!number) return database_->corrupt(Family::system, key);
  return *number;
}

Status RocksdbMetadataStore::load_counts() {
  const auto used = load_number(kInodesUsedKey);
  if (!used.ok()) return used.error();
  inodes_.set(*used);
  const auto incarnation = load_number(kIncarnationKey);
  if (!incarnation.ok()) return incarnation.error();
  incarnation_ = *incarnation;
  return database_->scan(Family::purges, {}, {}, [&](auto, auto) {
    purges_.add(1);
    return true;
  });
}

Status RocksdbMetadataStore::load_fences() {
  rocksdb::PinnableSlice value;
  const auto found = database_->get(Family::system, kFencedBelowKey, &value);
  if (!found.ok()) return found.error();
  if (*found) {
    const auto below = FencedBelow::from_text(StoreDatabase::view(value));
    if (!below) return database_->corrupt(Family::system, kFencedBelowKey);
    below_ = *below;
  }
  DISTFUSE_TRY(database_->scan(Family::system, kFencedPrefix, kFencedPrefix,
                               [&](std::string_view key, auto) {
                                 fenced_.insert(key_number(key, kFencedPrefix.size()));
                                 return true;
                               }));
  fenced_count_.set(fenced_.size());
  return {};
}

Status RocksdbMetadataStore::load() {
  DISTFUSE_TRY(inos_.load());
  DISTFUSE_TRY(load_counts());
  DISTFUSE_TRY(load_fences());
  DISTFUSE_TRY(orphans_.load());
  orphan_count_.set(orphans_.size());
  DISTFUSE_TRY(replies_.load());
  reply_records_.set(replies_.size());
  return make_root();
}

// ---- requests

Status RocksdbMetadataStore::commit(Transaction& transaction) {
  const std::int64_t added = transaction.inodes_added();
  if (added != 0) {
    const auto used = inodes_.get() + static_cast<std::uint64_t>(added);
    database_->put(transaction.batch(), Family::system, kInodesUsedKey, encode_number(used));
  }
  DISTFUSE_TRY(transaction.commit());
  inodes_.add(added);
  purges_.add(transaction.purges_added());
  orphans_.committed(transaction);
  orphan_count_.set(orphans_.size());
  return {};
}

template <typename Request>
rpc::MetadataReply RocksdbMetadataStore::run_fresh(const rpc::RequestContext& context,
                                                   const Request& request) {
  Transaction transaction(*database_);
  rpc::MetadataReply reply;
  Operation operation{transaction, inos_, orphans_, context, options_, options_.clock(), reply};
  const Status status = run(operation, request);
  if (!status.ok()) {
    reply = error_reply(status.error().code);
    if (!kChanges<Request> || reply.error == EIO) return reply;
    transaction.discard();
  }
  if (!kChanges<Request>) return reply;
  const bool recorded = context.session != 0;
  if (recorded) replies_.record(transaction, context, reply);
  if (const Status written = commit(transaction); !written.ok()) return to_reply(written);
  if (recorded) replies_.committed(context);
  reply_records_.set(replies_.size());
  return reply;
}

template <typename Request>
rpc::MetadataReply RocksdbMetadataStore::change(const rpc::RequestContext& context,
                                                const Request& request) {
  if (database_->broken()) return error_reply(EIO);
  if (context.session == 0) return run_fresh(context, request);
  if (context.lowest_unanswered > context.request_id) return error_reply(EINVAL);
  switch (replies_.judge(context)) {
    case ReplyLog::Verdict::fresh:
      return run_fresh(context, request);
    case ReplyLog::Verdict::stale:
      return error_reply(ESTALE);
    case ReplyLog::Verdict::full:
      return error_reply(ENOBUFS);
    case ReplyLog::Verdict::replay:
      break;
  }
  replayed_.add(1);
  auto reply = replies_.recall(context);
  return reply.ok() ? std::move(*reply) : error_reply(reply.error().code);
}

template <typename Request>
rpc::MetadataReply RocksdbMetadataStore::dispatch(const rpc::RequestContext& context,
                                                  const Request& request) {
  if constexpr (std::is_same_v<Request, rpc::FenceSession>) {
    return to_reply(fence(request.session));
  } else if constexpr (std::is_same_v<Request, rpc::SyncMetadata>) {
    return to_reply(sync());
  } else if constexpr (std::is_same_v<Request, rpc::StatFilesystem>) {
    rpc::MetadataReply reply;
    reply.inodes_used = inodes_.get() - orphans_.size();  // an orphan is gone for whoever counts
    return reply;
  } else if constexpr (kChanges<Request>) {
    return change(context, request);
  } else {
    return run_fresh(context, request);
  }
}

rpc::MetadataReply RocksdbMetadataStore::execute(const rpc::RequestContext& context,
                                                 const rpc::MetadataRequest& request) {
  operations_.add(1);
  if (below_.contains(context.session) || fenced_.contains(context.session)) {
    refused_.add(1);
    errors_.add(1);
    return error_reply(rpc::kFenced);
  }
  auto reply = std::visit([&](const auto& each) { return dispatch(context, each); }, request);
  if (reply.error != 0) {
    const int error = reply.error;
    reply = error_reply(error);
    errors_.add(1);
  }
  return reply;
}

// ---- fences, orphans and purges

Status RocksdbMetadataStore::fence(rpc::SessionId session) {
  if (session == 0) return fail(EINVAL);
  if (!fenced_.contains(session)) {
    Transaction transaction(*database_);
    database_->put(transaction.batch(), Family::system, kFencedPrefix + number_key(session), {});
    replies_.drop(transaction, session);
    DISTFUSE_TRY(commit(transaction));
    fenced_.insert(session);
    fenced_count_.set(fenced_.size());
    replies_.dropped(session);
    reply_records_.set(replies_.size());
  }
  return drop_registrations(session);
}

Status RocksdbMetadataStore::cover_fences(rpc::SessionId high,
                                          std::span<const rpc::SessionId> living) {
  FencedBelow below = below_;
  if (!below.raise(high, living, [this](rpc::SessionId each) { return fenced_.contains(each); }))
    return {};
  Transaction transaction(*database_);
  for (const auto session : fenced_)
    if (below.contains(session))
      database_->erase(transaction.batch(), Family::system, kFencedPrefix + number_key(session));
  database_->put(transaction.batch(), Family::system, kFencedBelowKey, below.to_text());
  DISTFUSE_TRY(commit(transaction));
  std::erase_if(fenced_, [&](rpc::SessionId each) { return below.contains(each); });
  below_ = std::move(below);
  fenced_count_.set(fenced_.size());
  return {};
}

Status RocksdbMetadataStore::note_incarnation(std::uint64_t incarnation) {
  if (incarnation <= incarnation_) return {};
  Transaction transaction(*database_);
  database_->put(transaction.batch(), Family::system, kIncarnationKey, encode_number(incarnation));
  DISTFUSE_TRY(commit(transaction));
  incarnation_ = incarnation;
  return {};
}

Status RocksdbMetadataStore::drop_registrations(rpc::SessionId session) {
  std::vector<rpc::Ino> inodes;
  DISTFUSE_TRY(database_->scan(Family::opens, {}, {}, [&](std::string_view key, auto) {
    if (key_number(key, 8) == session) inodes.push_back(key_number(key));
    return true;
  }));
  const rpc::RequestContext context{.session = session};
  for (std::size_t done = 0; done < inodes.size(); done += kRegistrationsPerBatch) {
    Transaction transaction(*database_);
    rpc::MetadataReply unused;
    Operation operation{transaction, inos_, orphans_, context, options_, options_.clock(), unused};
    const std::size_t end = std::min(inodes.size(), done + kRegistrationsPerBatch);
    for (std::size_t i = done; i < end; ++i) DISTFUSE_TRY(unregister(operation, inodes[i]));
    DISTFUSE_TRY(commit(transaction));
  }
  return {};
}

Result<bool> RocksdbMetadataStore::reap_orphans(bool short_of_space) {
  if (orphans_.size() == 0 || database_->broken()) return false;
  const auto grace =
      short_of_space ? options_.orphan_grace / kGracePartWhenShort : options_.orphan_grace;
  const auto due = orphans_.due(options_.clock(), grace, kOrphansPerReap);
  Transaction transaction(*database_);
  for (const auto ino : due) {
    const auto inode = transaction.inode(ino);
    if (inode.ok()) {
      DISTFUSE_TRY(transaction.remove_inode(**inode));
    } else if (inode.error().code == ENOENT) {
      (void)database_->corrupt(Family::orphans, number_key(ino));  // said; the others shall go
      transaction.remove_orphan(ino);
    } else {
      return inode.error();
    }
  }
  DISTFUSE_TRY(commit(transaction));
  return due.size() == kOrphansPerReap;
}

Result<std::vector<PurgeJob>> RocksdbMetadataStore::pending_purges(std::size_t limit) {
  std::vector<PurgeJob> jobs;
  std::optional<Error> damage;
  if (limit == 0 || purges_.get() == 0) return jobs;
  DISTFUSE_TRY(
      database_->scan(Family::purges, {}, {}, [&](std::string_view key, std::string_view value) {
        const auto job = decode_purge(key_number(key), value);
        if (!job) {
          damage = database_->corrupt(Family::purges, key);
          return false;
        }
        jobs.push_back(*job);
        return jobs.size() < limit;
      }));
  if (damage) return *damage;
  return jobs;
}

Status RocksdbMetadataStore::purged(rpc::Ino ino) {
  const auto key = number_key(ino);
  rocksdb::PinnableSlice value;
  const auto found = database_->get(Family::purges, key, &value);
  if (!found.ok()) return found.error();
  if (!*found) return {};
  rocksdb::WriteBatch batch;
  database_->erase(batch, Family::purges, key);
  DISTFUSE_TRY(database_->write(batch));
  purges_.add(-1);
  return {};
}

MetadataCounters RocksdbMetadataStore::counters() const {
  MetadataCounters counters;
  counters.operations = operations_.get();
  counters.errors = errors_.get();
  counters.replayed = replayed_.get();
  counters.refused = refused_.get();
  counters.syncs = database_->syncs();
  counters.inodes = inodes_.get();
  counters.orphans = orphan_count_.get();
  counters.purges_pending = purges_.get();
  counters.reply_records = reply_records_.get();
  counters.fenced_sessions = fenced_count_.get();
  return counters;
}

}  // namespace

Result<std::unique_ptr<MetadataStore>> open_rocksdb_metadata_store(RocksdbMetadataOptions options) {
  auto claim =
      StoreClaim::take(options.directory, {options.cluster_id, "meta", kMetadataFormatVersion});
  if (!claim.ok()) return claim.error();
  auto database = StoreDatabase::open(
      {options.directory + "/db", options.cache_bytes, options.write_buffer_bytes});
  if (!database.ok()) return database.error();
  auto store = std::make_unique<RocksdbMetadataStore>(std::move(options), std::move(*claim),
                                                      std::move(*database));
  DISTFUSE_TRY(store->load());
  return std::unique_ptr<MetadataStore>(std::move(store));
}

}  // namespace distfuse::storaged
