// SPDX-License-Identifier: Apache-2.0
#include "client/cache/inode.h"

#include <algorithm>

namespace distfuse::client {

void AttributeCache::store(const rpc::Attributes& fresh) {
  const rpc::Attributes mine = attributes_;
  attributes_ = fresh;
  if ((dirty_ & kSize) != 0) attributes_.size = mine.size;
  if ((dirty_ & kMtime) != 0) attributes_.mtime = mine.mtime;
  if ((dirty_ & kCtime) != 0) attributes_.ctime.ns = std::max(fresh.ctime.ns, mine.ctime.ns);
  valid_ = true;
  ++sequence_;
}

bool AttributeCache::store_fetched(const rpc::Attributes& fresh, std::uint64_t began) {
  if (valid_) return true;  // somebody else stored what is at least as new
  if (began != sequence_) return false;
  store(fresh);
  return true;
}

void AttributeCache::invalidate() {
  valid_ = false;
  ++sequence_;
}

void AttributeCache::drop() {
  valid_ = false;
  changed_here_ = false;
  dirty_ = 0;
  ++sequence_;
}

void AttributeCache::wrote(std::uint64_t end, rpc::Timestamp now) {
  if (end > attributes_.size) {
    attributes_.size = end;
    dirty_ |= kSize;
  }
  attributes_.mtime = now;
  attributes_.ctime.ns = std::max(attributes_.ctime.ns, now.ns);
  dirty_ |= kMtime | kCtime;
  changed_here_ = true;
  ++sequence_;
}

void AttributeCache::directory_changed(rpc::Timestamp now, int links) {
  attributes_.mtime = attributes_.ctime = now;
  attributes_.nlink =
      static_cast<std::uint32_t>(static_cast<std::int64_t>(attributes_.nlink) + links);
  ++sequence_;
}

std::optional<AttributeCache::Flush> AttributeCache::begin_flush() const {
  if (dirty_ == 0) return std::nullopt;
  rpc::SetAttributes request{};
  request.ino = attributes_.ino;
  request.values = attributes_;
  if ((dirty_ & kSize) != 0)
    request.fields |= rpc::SetAttributes::kSize | rpc::SetAttributes::kGrowOnly;
  if ((dirty_ & kMtime) != 0) request.fields |= rpc::SetAttributes::kMtime;
  if ((dirty_ & kCtime) != 0) request.fields |= rpc::SetAttributes::kCtime;
  return Flush{request, sequence_};
}

void AttributeCache::end_setattr(const rpc::Attributes& fresh, std::uint64_t began, bool resized) {
  if (resized) dirty_ &= ~std::uint32_t{kSize};
  if (began == sequence_) dirty_ = 0;
  store(fresh);
  changed_here_ = true;
}

void AttributeCache::end_flush(const Flush& flush, const rpc::Attributes& fresh) {
  if (flush.sequence == sequence_) {
    dirty_ = 0;
    if (valid_) store(fresh);
    return;
  }
  // Written to meanwhile: the times are newer than what was sent; the size may be.
  if (attributes_.size <= flush.request.values.size) dirty_ &= ~std::uint32_t{kSize};
}

}  // namespace distfuse::client
