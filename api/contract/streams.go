// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package contract

// How a connection to PortStreams or PortForward begins. The shim writes one line: StreamWord, a space and
// the number that a later request names the stream by; or, to PortForward, the number of a TCP port alone.
// The agent answers with one line, GreetingOK or what it refuses, and after GreetingOK the bytes that follow
// are the stream's. Its other answer that the shim knows, GreetingFull, says that too many connections wait.
const (
	StreamWord   = "stream"
	GreetingOK   = "ok"
	GreetingFull = "no"
)

// TerminationLog is the type of diagnostic data with which the shim asks for a container's termination
// message, and the only one that the agent has.
const TerminationLog = "termination_log"

// KubeletData is the link by which kubelet swaps the state of a volume that it updates: a configMap, a
// secret. The shim leads the guest's copy through the same steps, and the agent admits only such steps
// to files that a container is made of.
const KubeletData = "..data"
