// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package contract

// Ports of the guest, over vsock and over the virtio-serial channel alike. The agent listens, the shim
// connects.
const (
	// PortAgent serves ttrpc: grpc.AgentService and grpc.Health. Kata's agent has it as well.
	PortAgent = 1024
	// PortStreams carries byte streams of processes (agent/stdio). Only an agent with the feature
	// coco-streams listens on it.
	PortStreams = 1027
	// PortForward carries connections with services on the guest's loopback address (agent/forward). The
	// agent listens on it if the kernel command line says so.
	PortForward = 1028
	// PortResolver carries questions for names to the host (agent/resolver). The agent listens on it if the kernel
	// command line says so.
	PortResolver = 1029
	// PortUpper carries what a container has written to its root file system to the host (agent/upper). The agent listens
	// on it where there is no TEE.
	PortUpper = 1030
)

// SerialPort names the virtio-serial port of a machine without vsock, over which internal/portmux carries
// all ports. The hypervisor drivers write it on the VMM's command line; the agent looks for it in sysfs.
const SerialPort = "org.coco.agent"
