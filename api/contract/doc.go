// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package contract holds the names and numbers, besides the messages of package agent, that the host and the guest
// must spell alike: the ports of the guest, its paths, the drivers of storages with their options, the parameters
// of the kernel command line, the agent's features; and the annotations that engines, Kata and coco itself
// write for the shim or the agent. Each constant says which side writes it and which reads it.
//
// The package imports nothing, so that every package of the host and of the guest, the policy and the
// tests may import it. Its test reads all Go files of the repository and fails where one of
// these values is spelled again.
//
// A released value does not change: an older agent, a policy or a published launch digest may hold it.
package contract
