// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package hostapi is what a pod needs of the machine, as narrow interfaces. Package virtcontainers/host makes the real
// ones; tests use fakes that behave.
package hostapi

import (
	"context"
	"errors"
	"net"
	"os"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/image/layer"
	"github.com/coco-shim/coco/network"
	"github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/virtcontainers/cgroups"
	"github.com/coco-shim/coco/virtcontainers/layers"
	"github.com/coco-shim/coco/virtcontainers/nic"
	"github.com/coco-shim/coco/virtcontainers/share"
)

// Host is what a pod needs of the machine. Package virtcontainers/host makes the real one; tests use
// fakes. All of it is required.
type Host struct {
	Driver  hypervisor.Driver
	Network Network
	Layers  Layers
	Machine launch.Machine
	// Devices are those that the VMM may open; nil: any.
	Devices *cgroups.Devices
	// Files starts what shows files of the host to a VM, runtime.host_path = "live"; nil: nothing does.
	Files FileServer
	// TPM starts the virtual TPM of a VM, hypervisor.platform = "vtpm"; nil: nothing does.
	TPM TPMServer
	// Judge asks a pod's policy before a guest can; nil: nothing does.
	Judge Judge
	// Localhost opens the way from the loopback address of a pod's network namespace into the VM; nil
	// for none.
	Localhost func(netns string) (Localhost, error)
	// Names asks the resolver that an engine has in a network namespace; nil: nothing does.
	Names func(netns string) (Names, error)
}

// Localhost takes connections with a namespace's loopback address, where the runtime's port-forward
// looks for the pod's services, and leads them on. Package network/localhost implements it.
type Localhost interface {
	// Serve works until ctx ends.
	Serve(ctx context.Context, dial func(ctx context.Context, port uint16) (net.Conn, error))
	// Close is idempotent.
	Close() error
}

// Check refuses a host that lacks what every pod needs.
func (h Host) Check() error {
	if h.Driver == nil || h.Network == nil || h.Layers == nil {
		return errors.Join(errors.New("options.host is incomplete: make it with package virtcontainers/host"),
			errdefs.ErrInvalidArgument)
	}
	return nil
}

// Judge is the policy's evaluator. Package virtcontainers/host has the one that runs the program coco.
type Judge interface {
	// Foresee returns an error of class permission denied if the policy denies the sandbox, or the container if c is not
	// nil. Other errors say that there is no answer.
	Foresee(ctx context.Context, policy string, box *agent.CreateSandboxRequest, c *agent.CreateContainerRequest) error
}

// FileServer makes a process the server of files of the host for one VM. Package
// virtcontainers/host has the one that uses virtiofsd.
type FileServer interface {
	// Begin forks a waiting process into the network namespace that the path netns names. It will see no files but dir,
	// an empty directory.
	Begin(ctx context.Context, netns, dir string) (hypervisor.Process, error)
	// Serve turns proc into the server of dir and returns the VMM's end of their
	// connection, which is the caller's, as the process is.
	Serve(ctx context.Context, proc hypervisor.Process, dir string) (Files, *os.File, error)
}

// Files are the files that a VM sees.
type Files interface {
	share.Files
	// Close is idempotent.
	Close() error
}

// Network makes network namespaces and connects their interfaces with a VM.
type Network interface {
	// Make makes a namespace that lives as long as path, a file that must not exist. Delete ends
	// that; it is idempotent.
	Make(path string) error
	Delete(path string) error
	// Attach makes a tap for each usable interface of the namespace. Before it changes anything it
	// calls record with what it is going to make. On error it leaves nothing. With standby, a
	// namespace without interfaces gets a tap for one that may come later.
	Attach(ctx context.Context, netns string, standby bool, record func([]network.Redirect) error) (nic.Attachment, error)
	// Clean undoes what an Attach recorded whose process is gone. It is idempotent, and fine with a
	// namespace that is gone.
	Clean(ctx context.Context, netns string, made []network.Redirect) error
}

// Layers finds or builds the image layers of a root file system.
type Layers interface {
	// Open returns the layers, opened and complete, the topmost first. It may take long and ends
	// with ctx. The caller closes them.
	Open(ctx context.Context, req layers.Request) ([]*layer.Layer, error)
}

// TPMServer makes a process the virtual TPM of one VM. Package virtcontainers/host has the one that uses swtpm.
type TPMServer interface {
	// Begin forks a waiting process into the network namespace that the path netns names, with a jail and a user.
	Begin(ctx context.Context, netns string, user uint32) (hypervisor.Process, error)
	// Serve turns proc into a TPM that is new and empty, and returns the VMM's end of their connection, which is the
	// caller's, as the process is.
	Serve(ctx context.Context, proc hypervisor.Process) (*os.File, error)
}

// Names asks the engine's resolver in a pod's network namespace. Package network/nameserver implements it.
type Names interface {
	// Serve answers the questions of a guest that come over c until ctx or the connection ends. It closes c.
	Serve(ctx context.Context, c net.Conn) error
	// Close is idempotent.
	Close() error
}
