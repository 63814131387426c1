// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package contract

// WorkloadSocket is where a container finds the socket of the workload API. The agent mounts it for containers whose
// policy has workload; their programs connect to it.
const WorkloadSocket = "/run/coco/trust.sock"

// Stranger is what the agent tells coco-trust, in place of a container's name, of a connection that comes from no
// container that may ask for anything.
const Stranger = "!no-container"
