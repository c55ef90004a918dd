// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/fabric.h"

#include "rdma/fabric/ucx_fabric.h"
#include "rdma/fabric/verbs_fabric.h"

namespace distfuse::fabric {

Result<std::unique_ptr<Fabric>> open(const Options& options) {
  if (options.kind == "ucx") return ucx::open_ucx();
  if (options.kind == "verbs") return verbs::open_verbs(options, verbs::system_table());
  return Error{EINVAL, "fabric '" + options.kind + "' is unknown: use ucx or verbs"};
}

}  // namespace distfuse::fabric
