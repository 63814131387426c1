// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package contract

// How a connection to PortStreams, PortForward, PortResolver or PortUpper begins. The shim writes one line:
// StreamWord, a space and the number that a later request names the stream by; or, to PortForward, the number of a
// TCP port alone; or, to PortResolver, ResolverWord, a space and 1; or, to PortUpper, UpperWord, a space and one of the
// numbers below. The agent answers with one line, GreetingOK or what it refuses, and after GreetingOK the bytes that
// follow are the stream's. Its other answer that the shim knows, GreetingFull, says that too many connections wait.
const (
	StreamWord   = "stream"
	ResolverWord = "resolver"
	UpperWord    = "upper"
	GreetingOK   = "ok"
	GreetingFull = "no"
)

// Requests of the shim on PortUpper: all files of a container that has ended or is paused; all files of one that may
// run; of such a one those that have changed since the last stream, the rest of which is named.
const (
	UpperStill   = 1
	UpperAll     = 2
	UpperChanges = 3
)

// ResolverAddress is where Docker answers names of a container's networks, and where the guest does while the shim has
// a connection to PortResolver. ResolverLine is what a container's resolv.conf says then.
const (
	ResolverAddress = "127.0.0.11:53"
	ResolverLine    = "nameserver 127.0.0.11"
)

// Types of diagnostic data that the agent has.
const (
	// TerminationLog is a container's termination message.
	TerminationLog = "termination_log"
	// DecisionLog is the log of what the guest's policy has decided (package policy/decisions), of no container.
	DecisionLog = "decision_log"
)

// KubeletData is the link by which kubelet swaps the state of a volume that it updates: a configMap, a
// secret. The shim leads the guest's copy through the same steps, and the agent admits only such steps
// to files that a container is made of.
const KubeletData = "..data"
