// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package lint judges policies for people: Policy lists the members that leave the host a choice, and Diff the members
// in which two policies differ.
package lint

import (
	"fmt"
	"slices"
	"strings"

	"github.com/coco-shim/coco/policy"
)

// Finding is a choice that a policy leaves to the host.
type Finding struct {
	// Warning is unset for what every pod of Kubernetes has, such as addresses.
	Warning bool   `json:"warning"`
	At      string `json:"at"` // "pod", or a container's or volume's name
	Text    string `json:"text"`
}

// String is the finding as a line.
func (f Finding) String() string {
	kind := "note"
	if f.Warning {
		kind = "warning"
	}
	return fmt.Sprintf("%s: %s: %s", kind, f.At, f.Text)
}

// findings collects them.
type findings []Finding

func (f *findings) warn(at, format string, args ...any) {
	*f = append(*f, Finding{true, at, fmt.Sprintf(format, args...)})
}

func (f *findings) note(at, format string, args ...any) {
	*f = append(*f, Finding{false, at, fmt.Sprintf(format, args...)})
}

// Policy judges a policy.
func Policy(p *policy.Policy) []Finding {
	out := findings{}
	out.pod(&p.Pod)
	for _, v := range p.Volumes {
		out.content("volume "+v.Name, v.Content)
		if v.Kind == policy.VolumeHost {
			out.warn("volume "+v.Name, "is a file system on a disk of the host, which can change it at any time")
		}
	}
	for i := range p.Containers {
		out.container(&p.Containers[i])
		out.workload(&p.Containers[i])
	}
	out.neighbours(p)
	return out
}

func (f *findings) pod(p *policy.Pod) {
	if p.Copy {
		f.warn("pod", "copy is open: the host can put files into the guest at places that no mount names")
	}
	if p.Sealed.InsecureUnsigned {
		f.warn("pod", "sealed.insecureUnsigned is open: sealed texts need no signature, so the host writes its own")
	}
	if p.Debug {
		f.warn("pod", "debug is open: the host can run containers of its own with any capabilities, and so read the pod's "+
			"memory and secrets")
	}
	if p.Stats {
		f.note("pod", "stats is open: the host reads statistics and the log of decisions")
	}
	if len(p.PortForward) > 0 {
		f.warn("pod", "the host can connect to ports %v of the guest's loopback address", p.PortForward)
	}
	if p.DNS.FromHost {
		f.note("pod", "name servers are the host's choice: authenticate services by TLS, not by their names")
	}
	if p.Network.Routes || len(p.Network.Interfaces) > 0 {
		f.note("pod", "addresses and routes are the host's choice, and it reads and changes all that is not encrypted")
	}
}

func (f *findings) container(c *policy.Container) {
	at := "container " + c.Name
	switch {
	case c.Allow.Exec.Any:
		f.warn(at, "exec is open: the host can run any program in the container and read its memory")
	case len(c.Allow.Exec.Commands) > 0:
		f.note(at, "the host can run %d pinned commands at any time", len(c.Allow.Exec.Commands))
	}
	if c.Allow.Logs {
		f.note(at, "logs is open: the host reads the output")
	}
	if c.Allow.Stdin {
		f.warn(at, "stdin is open: the host writes to the input")
	}
	for _, e := range c.Process.Env {
		if e.Type == policy.TypeAny {
			f.warn(at, "env %s may have any value", e.Name)
		}
	}
	for _, m := range c.Mounts {
		if m.Source.Copy != nil && !usual(m.Destination) {
			f.content(at+", mount "+m.Destination, m.Source.Copy)
		}
		if strings.Contains(strings.Join(m.Options, ","), "rshared") {
			f.warn(at, "mount %s is shared: mounts that the container makes appear in others", m.Destination)
		}
	}
	for _, d := range c.Disks {
		f.warn(at, "disk %s is of the host: encrypt and authenticate what is written to it", d)
	}
	f.secrets(at, c)
	if slices.Contains(c.Linux.Seccomp, policy.NoSeccomp) {
		f.note(at, "may run without a seccomp filter")
	}
	for _, k := range c.Process.Caps.Effective {
		if powerful(k) {
			f.warn(at, "has %s, which reaches the guest's kernel and so the policy", k)
		}
	}
}

// secrets warns of ways to a container's secrets that the policy opens. Other findings tell of exec.any already.
func (f *findings) secrets(at string, c *policy.Container) {
	if len(c.Secrets) == 0 {
		return
	}
	f.note(at, "gets %d secrets before it starts, from the key broker that the initdata names", len(c.Secrets))
	for _, s := range c.Secrets {
		if s.Env != "" {
			f.note(at, "secret %s is a variable: all child processes have it, and crash reports often show it", s.Resource)
		}
		if m := s.Mode; m != "" && (m[len(m)-1] != '0' || len(m) < 3) {
			f.warn(at, "secret %s has mode %s: every user in the container may use its file", s.Resource, m)
		}
	}
}

// usual are files of which kubelet and containerd make one for every container.
func usual(dst string) bool {
	return dst == "/etc/hosts" || dst == "/etc/hostname" || dst == "/etc/resolv.conf"
}

func (f *findings) content(at string, c *policy.Content) {
	if c != nil && c.Rule == policy.ContentUnpinned {
		f.warn(at, "content is not pinned: the host decides about its bytes, at first and later")
	}
}
