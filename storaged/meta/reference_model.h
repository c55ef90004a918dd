// SPDX-License-Identifier: Apache-2.0
// What a metadata store should answer, told by plain maps: the other side of the differential tests. It shares no code with
// the store. It has no reply cache: the test asks it once per request.
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>

#include "rpc/metadata.h"
#include "storaged/meta/metadata_store.h"

namespace distfuse::storaged {

class ReferenceModel {
 public:
  ReferenceModel(std::uint32_t uid, std::uint32_t gid, rpc::Timestamp made);

  /// `seen`: the store's answer, from which only the number of a new inode is taken.
  rpc::MetadataReply execute(const rpc::RequestContext& context,
                             const rpc::MetadataRequest& request, rpc::Timestamp now,
                             const rpc::MetadataReply& seen);
  /// Removes the orphans whose grace is over, as far as a store with that grace does by one call when few are due.
  void reap_orphans(rpc::Timestamp now, std::int64_t grace_ns);
  /// The whole state as text; equal texts are equal states.
  [[nodiscard]] std::string dump() const;
  [[nodiscard]] rpc::Ino last_ino() const { return last_ino_; }

 private:
  struct Name {
    rpc::Ino ino;
    std::uint64_t cookie;
  };
  struct Node {
    rpc::Attributes attributes;
    rpc::Ino parent = 0;
    std::uint64_t next_cookie = 16;
    std::map<std::string, Name> names;
    std::string target;
    std::map<std::string, std::string> xattrs;
    std::set<rpc::SessionId> open_by;
    std::optional<std::int64_t> orphan_since;  ///< No name and not open: since when.
  };
  struct Failure {
    int code;
  };
  struct Call;  // The operations.

  std::map<rpc::Ino, Node> nodes_;
  std::map<rpc::Ino, std::uint64_t> purges_;  ///< Inode → size.
  std::set<rpc::SessionId> fenced_;
  rpc::Ino last_ino_ = rpc::kRootIno;
};

/// The same text from a store, looking at inodes up to `last_ino`.
std::string dump_store(MetadataStore& store, rpc::Ino last_ino);

/// Random requests over few names and few inodes, so that they meet. The same seed and the same answers give the same
/// requests.
class RequestGenerator {
 public:
  RequestGenerator(std::uint64_t seed, rpc::Ino last_ino) : random_(seed), last_ino_(last_ino) {}
  rpc::MetadataRequest next();
  void note(const rpc::MetadataReply& reply);
  std::uint64_t below(std::uint64_t bound) { return random_() % bound; }

 private:
  rpc::Ino ino();
  std::string name();
  bool one_in(std::uint64_t n) { return below(n) == 0; }
  rpc::MetadataRequest next_change(std::uint64_t kind);
  rpc::MetadataRequest next_look(std::uint64_t kind);
  static constexpr std::size_t kRecent = 16;
  std::mt19937_64 random_;
  rpc::Ino last_ino_;
  std::deque<rpc::Ino> recent_;  ///< Of the last answers: most of them are there.
};

}  // namespace distfuse::storaged
