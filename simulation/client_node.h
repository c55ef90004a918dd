// SPDX-License-Identifier: Apache-2.0
// A mount: the shell around the client's part of the lock core (rdma/lock/client.h, session.h), its page cache, and the
// applications on it.
//
// Cached pages are used only under a lock of this session while the session is trusted; dirty pages exist under X only, reach
// storaged before the lock goes, and are durable after fsync. A lost session drops its pages; what was dirty is an error of
// the file, once. Files: client_session.cc (sessions, connections), client_lock.cc (locks, freeze), client_pages.cc (pages, storage),
// client_work.cc (applications), client_files.cc (file locks).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "rdma/lock/client.h"
#include "rdma/lock/session.h"
#include "simulation/network.h"
#include "simulation/oracle.h"

namespace distfuse::simulation {

class ClientNode : public Process {
 public:
  ClientNode(World& world, unsigned index, unsigned number);

  void start() override;
  void crash(bool power) override;
  Acceptance greeted(ConnectionId, const Process&, const Hello&, Packet&) override {
    return Acceptance::refused;
  }
  void connected(ConnectionId connection, const Packet& answer) override;
  void not_connected(ConnectionId connection, const Packet* answer) override;
  void received(ConnectionId connection, const Packet& packet) override;
  void ended(ConnectionId connection, bool by_peer) override;

  /// The clock jumped: what waits for a time looks again.
  void clock_jumped();
  /// Gives everything up at one lockd, says Bye and comes again.
  void leave(unsigned lockd);
  /// X on the key, once, by the first thread; for the sweep at the end.
  void take(unsigned key);
  void drop(unsigned key);

  // For the end's checks.
  [[nodiscard]] bool at_rest() const;
  [[nodiscard]] std::string unrest() const;
  [[nodiscard]] bool holds_anything() const;
  [[nodiscard]] const df_lock& core(unsigned key) const { return locks_[key].core; }
  [[nodiscard]] bool live_at(unsigned lockd) const;
  /// The strongest mode under which this mount would use the key's pages now without asking anyone.
  [[nodiscard]] df_u32 usable(unsigned key) const;
  bool liar = false;

 private:
  /// The session at one lockd.
  struct Link {
    unsigned lockd = 0;
    std::uint64_t generation = 0;  ///< Of connections: what belongs to earlier ones is dropped.
    bool session = false;          ///< The machine runs.
    bool leaving = false;
    df_session machine{};
    df_table table{};
    ConnectionId control = 0;
    std::vector<ConnectionId> lanes;
    std::set<ConnectionId> lanes_wanted;
    std::vector<ConnectionId>
        lingering;    ///< Not used any more, and not closed while we trust (session.h, Loss).
    bool up = false;  ///< All connections stand.
    df_welcome welcome{};
    std::uint64_t hello_ms = 0;
    std::uint64_t tick_at = ~0ULL;
    bool reasserting = false;
    std::set<unsigned> reasserts;  ///< Keys that are being taken again.
    std::set<df_u32> frozen;
    std::vector<df_msg> freezes;  ///< Not answered yet.
    unsigned glimpses = 0;
  };
  struct Lock {
    df_lock core{};
    std::optional<df_chain> parked;
    bool in_flight = false;  ///< A chain is posted.
    df_u32 gate_slot = DF_NO_SLOT;
    bool shedding = false;
    bool done_said = false;  ///< df_lock_shed_done was called for this shed.
    df_u32 keep = 0;
    Time granted_at = 0;
    bool changed = false, unpublished = false;
    bool covered = false;  ///< Held in S or X all the time since the pages were checked.
    bool known = false;    ///< core.version is of this incarnation's table.
    bool seen = false;
    std::uint64_t seen_version = 0;
    bool cancelled = false;
  };
  struct Page {
    bool present = false, dirty = false;
    Order order = 0;
    Order writing = 0;  ///< On its way to storaged.
    Order flushed = 0;  ///< The last of ours that storaged answered.
  };
  /// fcntl, all of the file, for writing; the owner is the mount.
  struct FileLock {
    enum State : std::uint8_t { free, asked, held, unlocking } state = free;
    std::uint64_t request = 0;
    bool reclaiming = false;
    unsigned thread = 0;
  };
  struct File {
    std::vector<Page> pages;
    std::map<unsigned, std::uint64_t> unsynced;      ///< storaged → boot that has our writes.
    std::map<unsigned, std::uint64_t> acknowledged;  ///< Writes, by storaged.
    std::vector<std::pair<unsigned, Order>>
        unreported;  ///< Written; neither synced nor an error yet.
    FileLock lock;
    bool error = false;
    unsigned direct = 0;  ///< Uncached calls on their way.
    // The fsync under way.
    bool fsyncing = false;
    std::vector<std::pair<unsigned, Order>> covered;
    std::set<unsigned> syncing, synced;
  };
  enum class Work : std::uint8_t {
    read,
    write,
    direct_read,
    direct_write,
    fsync,
    stat,
    sweep,
    file_lock
  };
  struct Thread {
    enum State : std::uint8_t {
      idle,
      suspended,
      waiting,
      trying,
      retry,
      acting,
      syncing,
      filing
    } state = idle;
    Work work = Work::read;
    std::uint64_t operation = 0;
    unsigned key = 0;
    unsigned page = 0;
    df_u32 mode = 0;
    bool pinned = false;
    unsigned pause_ms = 1;
    Time since = 0;
  };
  struct Storage {
    ConnectionId connection = 0;
    bool up = false;
    struct Pending {
      StorageCall call;
      unsigned key;
      std::function<void(const StorageReply&)> done;
    };
    std::map<std::uint64_t, Pending> pending;
  };

  // client_session.cc
  void connect(Link& link);
  void disconnect(Link& link);
  void close_lingering(Link& link);
  void all_up(Link& link);
  void failed(Link& link, const df_welcome* refusal);
  void begin_session(Link& link);
  void perform(Link& link, const df_session_out& out);
  void tick(Link& link);
  void renew(Link& link, std::uint64_t value);
  void cut(Link& link);
  void lose(Link& link);
  void reassert(Link& link);
  void reasserted(Link& link, unsigned key);
  void reassert_later(unsigned key);
  void try_bye(Link& link);
  [[nodiscard]] bool trusted(const Link& link) const;
  Link* link_of(ConnectionId connection);
  [[nodiscard]] std::uint64_t ms() const;

  // client_lock.cc
  void reset_lock(Link& link, unsigned key);
  void output(unsigned key, const df_out& out);
  void send(Link& link, const df_msg& message);
  void post(unsigned key, const df_chain& chain);
  void start_chain(unsigned key, const df_chain& chain);
  void chain_done(unsigned key, const df_chain& chain, std::uint64_t old, const df_u8* image);
  void note_chain(unsigned key, const df_chain& chain, std::uint64_t old);
  void lock_message(Link& link, const df_msg& message);
  void freeze(Link& link, const df_msg& message);
  void thaw(Link& link, df_u32 slot);
  void answer_freezes(Link& link);
  void wake(unsigned key, df_u32 wake);
  void check_cover(unsigned key);
  void check_value(unsigned key) const;
  void forget_if_quiet(unsigned key);

  // client_pages.cc
  void begin_shed(unsigned key, df_u32 keep);
  void shed_progress(unsigned key);
  void flush(unsigned key, unsigned page);
  bool flush_all(unsigned key);
  void flushed(unsigned key, unsigned page, Order order, const StorageReply& reply);
  void progress(unsigned key);
  void drop_pages(unsigned key);
  void lose_pages(unsigned key);
  void call(unsigned key, unsigned page, StorageCall call,
            std::function<void(const StorageReply&)> done);
  void send_call(unsigned storaged, std::uint64_t request);
  void connect_storage(unsigned storaged);
  void storage_reply(unsigned storaged, const StorageReply& reply);
  void fsync_step(unsigned key);
  void fsync_end(unsigned key);
  [[nodiscard]] df_value value_of(unsigned key) const;
  void note_boot(unsigned key, unsigned storaged, std::uint64_t boot);

  // client_files.cc
  void file_lock(unsigned thread);
  void file_unlock(unsigned thread);
  void file_reply(Link& link, const df_msg_file_reply& reply);
  void file_locked(unsigned key);
  void detach_file_lock(unsigned key);
  void reclaim_file_lock(Link& link, unsigned key);
  void send_file(Link& link, unsigned key, df_u32 type, df_u8 flags);

  // client_work.cc
  void next(unsigned thread, Time pause);
  void choose(unsigned thread);
  void attempt(unsigned thread);
  void want(unsigned thread);
  void pinned(unsigned thread);
  void act(unsigned thread);
  bool act_cached(unsigned thread, bool writes);
  void act_direct(unsigned thread);
  void finish(unsigned thread);
  void hold_then_finish(unsigned thread);
  void fail(unsigned thread, bool pins = false);
  void cancel(unsigned thread);
  void stat(unsigned thread);
  void disturb();
  [[nodiscard]] std::string describe(unsigned key) const;
  void check_use(unsigned key, df_u32 mode) const;
  void later(unsigned thread, Time delay, void (ClientNode::*step)(unsigned));
  [[nodiscard]] Link& link(unsigned key) { return links_[key % links_.size()]; }
  [[nodiscard]] const Link& link(unsigned key) const { return links_[key % links_.size()]; }
  [[nodiscard]] SessionName session(unsigned key) const;
  [[nodiscard]] PageId page_id(unsigned key, unsigned page) const;

  World& world_;
  const unsigned number_;
  std::vector<Link> links_;
  std::vector<Lock> locks_;
  std::vector<File> files_;
  std::vector<Thread> threads_;
  std::vector<Storage> storage_;
  std::uint64_t next_request_ = 1;
  std::uint64_t next_glimpse_ = 1ULL << 40U;
  std::uint64_t next_file_ = 1ULL << 41U;
};

}  // namespace distfuse::simulation
