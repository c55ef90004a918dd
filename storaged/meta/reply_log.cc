// SPDX-License-Identifier: Apache-2.0
#include "storaged/meta/reply_log.h"

#include <algorithm>

namespace distfuse::storaged {

Status ReplyLog::load() {
  std::optional<Error> damage;
  DISTFUSE_TRY(
      database_.scan(Family::replies, {}, {}, [&](std::string_view key, std::string_view value) {
        const auto record = decode_reply(value);
        if (!record || key.size() != 16) {
          damage = database_.corrupt(Family::replies, key);
          return false;
        }
        auto& session = sessions_[key_number(key)];
        session.recorded.insert(key_number(key, 8));
        session.watermark = std::max(session.watermark, record->watermark);
        ++size_;
        return true;
      }));
  if (damage) return *damage;
  return {};
}

ReplyLog::Verdict ReplyLog::judge(const rpc::RequestContext& context) const {
  const auto found = sessions_.find(context.session);
  if (found == sessions_.end()) return Verdict::fresh;
  const Session& session = found->second;
  if (context.request_id < session.watermark) return Verdict::stale;
  if (session.recorded.contains(context.request_id)) return Verdict::replay;
  if (session.recorded.size() < max_records_) return Verdict::fresh;
  // Full, unless this very request lets something go.
  return *session.recorded.begin() < context.lowest_unanswered ? Verdict::fresh : Verdict::full;
}

Result<rpc::MetadataReply> ReplyLog::recall(const rpc::RequestContext& context) {
  const auto key = pair_key(context.session, context.request_id);
  rocksdb::PinnableSlice value;
  const auto found = database_.get(Family::replies, key, &value);
  if (!found.ok()) return found.error();
  const auto record = *found ? decode_reply(StoreDatabase::view(value)) : std::nullopt;
  if (!record) return database_.corrupt(Family::replies, key);
  rpc::MetadataReply reply;
  reply.error = record->error;
  if (record->attributes) reply.attributes.push_back(*record->attributes);
  return reply;
}

void ReplyLog::record(Transaction& transaction, const rpc::RequestContext& context,
                      const rpc::MetadataReply& reply) {
  ReplyRecord record{reply.error, context.lowest_unanswered, std::nullopt};
  if (!reply.attributes.empty()) record.attributes = reply.attributes.front();
  const auto found = sessions_.find(context.session);
  if (found != sessions_.end()) {
    const Session& session = found->second;
    record.watermark = std::max(record.watermark, session.watermark);
    for (const auto id : session.recorded) {
      if (id >= record.watermark) break;
      database_.erase(transaction.batch(), Family::replies, pair_key(context.session, id));
    }
  }
  database_.put(transaction.batch(), Family::replies, pair_key(context.session, context.request_id),
                encode(record));
}

void ReplyLog::committed(const rpc::RequestContext& context) {
  Session& session = sessions_[context.session];
  session.watermark = std::max(session.watermark, context.lowest_unanswered);
  auto& recorded = session.recorded;
  const auto keep = recorded.lower_bound(session.watermark);
  size_ -= static_cast<std::uint64_t>(std::distance(recorded.begin(), keep));
  recorded.erase(recorded.begin(), keep);
  recorded.insert(recorded.end(), context.request_id);
  ++size_;
}

void ReplyLog::drop(Transaction& transaction, rpc::SessionId session) {
  const auto found = sessions_.find(session);
  if (found == sessions_.end()) return;
  for (const auto id : found->second.recorded) {
    database_.erase(transaction.batch(), Family::replies, pair_key(session, id));
  }
}

void ReplyLog::dropped(rpc::SessionId session) {
  const auto found = sessions_.find(session);
  if (found == sessions_.end()) return;
  size_ -= found->second.recorded.size();
  sessions_.erase(found);
}

}  // namespace distfuse::storaged
