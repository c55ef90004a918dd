// SPDX-License-Identifier: Apache-2.0
#include "client/locks/welcome.h"

#include <string>

namespace distfuse::client {

Result<df_welcome> read_welcome(std::span<const std::byte> data, df_u32* refusal) {
  df_welcome welcome{};
  const int check = df_welcome_check(data.data(), static_cast<df_u32>(data.size()), &welcome);
  const auto other_version = [&] {
    return Error{EPROTONOSUPPORT, "lockd speaks lock protocol version " +
                                      std::to_string(welcome.version) + ", this client " +
                                      std::to_string(DF_WIRE_VERSION) +
                                      ": install the same release on both"};
  };
  if (check == DF_CHECK_VERSION) {
    if (refusal != nullptr) *refusal = DF_REFUSED_VERSION;
    return other_version();
  }
  if (check != DF_CHECK_OK) {
    return Error{EPROTO, std::string("lockd's welcome is malformed: ") + df_check_text(check)};
  }
  if (refusal != nullptr) *refusal = welcome.refusal;
  switch (welcome.refusal) {
    case DF_ACCEPTED:
      return welcome;
    case DF_REFUSED_VERSION:
      return other_version();
    case DF_REFUSED_CLUSTER:
      return Error{EINVAL, "lockd belongs to another cluster: compare `id` in the cluster files"};
    case DF_REFUSED_NO_NODE_ID:
      return Error{EUSERS, "lockd has no node id left: restart it when its mounts are gone"};
    case DF_REFUSED_SESSION:
      return Error{ENOTCONN, "lockd does not know this session any more"};
    case DF_REFUSED_GRACE:
      return Error{EAGAIN, "lockd has just restarted and gives no new session yet"};
    default:
      return Error{EPROTO, "lockd calls our hello malformed"};
  }
}

}  // namespace distfuse::client
