// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/verbs_handshake.h"

#include <cstring>

namespace distfuse::fabric::verbs {

namespace {

struct Header {
  std::uint32_t magic;
  std::uint16_t version;
  std::uint16_t length;
  std::uint64_t address;
  std::uint64_t region_length;
  std::uint32_t rkey;
  std::uint32_t zero;
};
static_assert(sizeof(Header) == kAcceptHeader);

}  // namespace

std::vector<std::byte> encode_accept(const RemoteRegion& region, std::span<const std::byte> data) {
  const Header header{kAcceptMagic,
                      kAcceptVersion,
                      static_cast<std::uint16_t>(data.size()),
                      region.address,
                      region.length,
                      region.rkey,
                      0};
  std::vector<std::byte> bytes(kAcceptHeader + data.size());
  std::memcpy(bytes.data(), &header, sizeof(header));
  if (!data.empty()) std::memcpy(bytes.data() + kAcceptHeader, data.data(), data.size());
  return bytes;
}

Result<AcceptData> decode_accept(std::span<const std::byte> bytes) {
  Header header{};
  if (bytes.size() < sizeof(header)) return Error{EPROTO, "malformed accept: too short"};
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.magic != kAcceptMagic) return Error{EPROTO, "malformed accept: not this protocol"};
  if (header.version != kAcceptVersion) {
    return Error{EPROTO,
                 "the peer speaks fabric protocol version " + std::to_string(header.version)};
  }
  const auto rest = bytes.subspan(kAcceptHeader);
  if (header.length > kMaxAcceptData || header.length > rest.size() || header.zero != 0 ||
      header.address + header.region_length < header.address || header.address % 8 != 0) {
    return Error{EPROTO, "malformed accept"};
  }
  AcceptData accept;
  accept.region = {header.address, header.region_length, header.rkey};
  accept.data.assign(rest.begin(), rest.begin() + header.length);
  return accept;
}

}  // namespace distfuse::fabric::verbs
