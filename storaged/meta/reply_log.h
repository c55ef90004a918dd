// SPDX-License-Identifier: Apache-2.0
// At most once: the reply record of each changing request, written in the same batch as the change itself.
//
// Parties: a session's client, which numbers its requests and names in each the lowest that it has no answer to (the
// watermark); this log. A request is *fresh* (run it), a *replay* (answered from its record), or *stale* (its id is below the
// session's watermark: it was answered, and the client said so; a late copy must not run again).
// The watermark is in each record, and the record of the request that raised it last is never below it, so a restart finds it
// again. Failures are recorded too: a late copy of a failed request must not succeed.
// Limits: max_records per session (a client with one slow fsync keeps its watermark while thousands of others are answered;
// 2^18 records are some 20 MiB on disk and 10 MiB here), then ENOBUFS until the watermark moves. Records of a session go
// when it is fenced.
// Known weakness: a session that never ends keeps its last records for ever; lockd ends every session by FenceSession.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <unordered_map>

#include "common/result.h"
#include "storaged/meta/records.h"
#include "storaged/meta/transaction.h"

namespace distfuse::storaged {

class ReplyLog {
 public:
  enum class Verdict { fresh, replay, stale, full };

  ReplyLog(StoreDatabase& database, std::uint64_t max_records)
      : database_(database), max_records_(max_records) {}
  /// Reads what earlier lives of the store left. Error: EIO.
  Status load();

  [[nodiscard]] Verdict judge(const rpc::RequestContext& context) const;
  /// The recorded answer; only after judge() said replay. Error: EIO.
  [[nodiscard]] Result<rpc::MetadataReply> recall(const rpc::RequestContext& context);
  /// Adds the record, and the removal of those below the watermark, to the transaction.
  void record(Transaction& transaction, const rpc::RequestContext& context,
              const rpc::MetadataReply& reply);
  /// The transaction with record() has been written.
  void committed(const rpc::RequestContext& context);

  /// Adds the removal of all records of a session to the transaction.
  void drop(Transaction& transaction, rpc::SessionId session);
  void dropped(rpc::SessionId session);

  [[nodiscard]] std::uint64_t size() const { return size_; }

 private:
  struct Session {
    std::uint64_t watermark = 0;
    std::set<std::uint64_t> recorded;
  };
  StoreDatabase& database_;
  std::uint64_t max_records_;
  std::unordered_map<rpc::SessionId, Session> sessions_;
  std::uint64_t size_ = 0;
};

}  // namespace distfuse::storaged
