// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package launch plans a pod's VM: from the configuration and the pod to the size of the VM.
//
// Its functions depend on nothing but their arguments: they read no file, no clock and nothing of the host. The shim,
// `coco measure` and a verifier therefore get the same answer for the same pod.
package launch
