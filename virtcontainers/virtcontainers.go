// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package virtcontainers is the pod model: a Pod is one VM with its network, cgroups and files on
// the host; containers and their processes live in it.
//
// Pod, Container and process.Process are handles: a client gets a Container of CreateContainer and a Process of
// its Init or Exec, and calls their methods. The pod's network, disks, volumes and streams are handles
// too, each in a package below this one that declares the few calls which it needs.
//
// CreatePod has package boot make the VM and what it holds on the host, and each thing is in the journal in the bundle
// before it is made. Shutdown gives everything back in reverse order. Cleanup does the same from the journal when the
// process that made the pod is gone. Decisions that need nothing of the host are in packages below plan.
//
// The package knows neither containerd nor any VMM, and it relays no bytes: a process's streams are the caller's.
package virtcontainers

import (
	"log/slog"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/plan/rootfs"
	"github.com/coco-shim/coco/virtcontainers/boot"
	"github.com/coco-shim/coco/virtcontainers/layers"
	"github.com/coco-shim/coco/virtcontainers/share"
	"github.com/coco-shim/coco/virtcontainers/stream"
)

// Mount is a mount of the container's root file system, as containerd describes it.
type Mount struct {
	Type, Source, Target string
	Options              []string
}

// ContainerRequest asks for a container.
type ContainerRequest struct {
	ID, Bundle            string
	Spec                  *specs.Spec
	Rootfs                []Mount // empty: Spec.Root.Path, a directory
	Terminal              bool
	Stdin, Stdout, Stderr bool // which streams are wanted
	OneOutput             bool // both outputs go to one place; see stream.Wanted
}

func (r ContainerRequest) wanted() stream.Wanted {
	return stream.Wanted{
		Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal, OneOutput: r.OneOutput,
	}
}

// layers says where the container's root file system is on the host.
func (r ContainerRequest) layers() (layers.Request, error) {
	var mounts []rootfs.Mount
	for _, m := range r.Rootfs {
		mounts = append(mounts, rootfs.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return layers.Of(mounts, r.Spec, r.Bundle)
}

func (r ContainerRequest) share() share.Request {
	return share.Request{ID: r.ID, Bundle: r.Bundle, Spec: r.Spec}
}

// ExecRequest asks a container for a further process.
type ExecRequest struct {
	ID                    string
	Process               *specs.Process
	Terminal              bool
	Stdin, Stdout, Stderr bool
	OneOutput             bool
}

func (r ExecRequest) wanted() stream.Wanted {
	return stream.Wanted{
		Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal, OneOutput: r.OneOutput,
	}
}

// Options are the inputs of a pod's creation.
type Options struct {
	ID, Namespace, Bundle string
	Spec                  *specs.Spec
	Config                configs.Config
	// Rehearse, when not nil, is the configuration that Config.Runtime.Rehearse names.
	Rehearse *configs.Config
	// Initdata is the value of the annotation contract.KataInitdata, empty without one.
	Initdata string
	// First is the container of a pod of one: its layers are in the VM from boot when they are
	// there in time, and the VM ends with it.
	First *ContainerRequest
	// OnOOM is called, from a goroutine of the pod, when the guest killed for lack of memory.
	OnOOM   func(containerID string)
	Log     *slog.Logger
	ShimExe string // the program that can be the launcher; for Host's maker
	// JoinCgroup says that this process serves this pod and nothing else: it goes into the pod's cgroup.
	JoinCgroup bool
	Host       boot.Host
	// Warm is a VM that may become the pod's. CreatePod uses it, or ends it.
	Warm *boot.Warm
}

// boot are the inputs of the VM's boot.
func (o Options) boot(p *Pod) (boot.Options, error) {
	b := boot.Options{
		ID: o.ID, Namespace: o.Namespace, Bundle: o.Bundle, Spec: o.Spec, Config: o.Config, Rehearse: o.Rehearse,
		Initdata: o.Initdata, Log: o.Log, JoinCgroup: o.JoinCgroup, Host: o.Host, Warm: o.Warm,
		Step: p.recordPodStep, Ending: p.ending, Use: p.use,
	}
	if o.First == nil {
		return b, nil
	}
	l, err := o.First.layers()
	b.First = &boot.First{Request: o.First.share(), Layers: l}
	return b, err
}

// Phase is a step of a pod's start, or of a container's, and how long it took.
type Phase struct {
	Container string // "" for the pod's own
	Name      string
	Duration  time.Duration
}
