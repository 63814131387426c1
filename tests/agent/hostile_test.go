// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/testvm"
)

const guestRoot = contract.GuestRoot + "/"

// TestHostileHost: a host that speaks the protocol asks for what belongs to the guest. Nothing of it reaches
// a container, and the guest serves on.
func TestHostileHost(t *testing.T) {
	testvm.Need(t, testvm.QEMU, testvm.GuestImage, testvm.Busybox)
	v := boot(t, buildInitrd(t))
	_, err := v.agent.CreateSandbox(within(t, 20*time.Second), &pb.CreateSandboxRequest{
		Hostname:  "pod\nhost",
		SandboxId: "pod",
	})
	if !is(err, errdefs.IsInvalidArgument) {
		t.Errorf("a host name with a newline: %v", err)
	}
	if _, err := v.agent.CreateSandbox(within(t, 20*time.Second), &pb.CreateSandboxRequest{
		Hostname:  "pod-host",
		SandboxId: "pod",
	}); err != nil {
		t.Fatalf("CreateSandbox: %v", err)
	}
	v.busybox(t)
	t.Run("what is unknown", v.testUnknown)
	t.Run("links", v.testLinks)
	t.Run("mounts", v.testMounts)
	t.Run("other containers", v.testOthers)
	t.Run("hooks and annotations", v.testHooks)
	t.Run("a shared init", v.testSharedInit)
	// ls has one of its own
	if out, code := v.run(t, "after", spec("sh", "-c", "ls /proc/self/fd | wc -l; hostname")); code != 0 ||
		out != "4\npod-host\n" {
		t.Errorf("the guest afterwards: %d, %q", code, out)
	}
}

func (v *vm) link(t *testing.T, name, target string) error {
	t.Helper()
	_, err := v.agent.CopyFile(within(t, 20*time.Second), &pb.CopyFileRequest{
		Path: shared + name, FileMode: unix.S_IFLNK | 0o777, DirMode: 0o755, Data: []byte(target),
	})
	return err
}

// refused creates a container that must not come to be.
func (v *vm) refused(t *testing.T, what string, sp *pb.Spec, storages ...*pb.Storage) {
	t.Helper()
	_, err := v.agent.CreateContainer(within(t, 60*time.Second), &pb.CreateContainerRequest{
		ContainerId: "evil", OCI: sp,
		Storages: storages,
	})
	if !is(err, errdefs.IsInvalidArgument) && !is(err, errdefs.IsNotImplemented) {
		t.Errorf("%s: %v, want a refusal", what, err)
	}
	if err == nil {
		v.remove(t, "evil")
	}
}

func withMount(m *pb.Mount) *pb.Spec {
	sp := spec("true")
	sp.Mounts = append(sp.Mounts, m)
	return sp
}

func (v *vm) testLinks(t *testing.T) {
	for n, to := range map[string]string{"g": "/", "u": "/usr", "up": "../../..", "in": "busybox"} {
		if err := v.link(t, n, to); n != "in" && !is(err, errdefs.IsInvalidArgument) {
			t.Errorf("a link to %s: %v, want a refusal", to, err)
		}
	}
	const ov = guestRoot + "sandbox/ov"
	bind := withMount(&pb.Mount{Destination: "/g", Type: "bind", Source: ov, Options: []string{"rbind"}})
	for _, opts := range []string{
		"lowerdir=" + shared + "in", "lowerdir=" + shared + "in/bin", "lowerdir=" + rootfs + ":" + shared + "in",
		"lowerdir=" + rootfs + ",upperdir=" + shared + "in/u,workdir=" + shared + "in/w", "lowerdir=/", "lowerdir=/usr:/etc",
	} {
		v.refused(t, opts, bind, &pb.Storage{
			Driver: "overlayfs", Source: "overlay", Fstype: "overlay", MountPoint: ov,
			Options: []string{opts},
		})
	}
	v.refused(t, "a bind through a link",
		withMount(&pb.Mount{Destination: "/g", Type: "bind", Source: shared + "in/bin", Options: []string{"rbind"}}))
	v.refused(t, "a storage through a link", bind, &pb.Storage{Driver: "bind", Source: shared + "in", MountPoint: ov})
}

// testUnknown: a field and a greeting that the agent does not know are refused by name.
func (v *vm) testUnknown(t *testing.T) {
	sp := spec("true")
	sp.Linux.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 2000, protowire.VarintType), 1))
	_, err := v.agent.CreateContainer(within(t, 20*time.Second), &pb.CreateContainerRequest{ContainerId: "u", OCI: sp})
	if !is(err, errdefs.IsInvalidArgument) ||
		!strings.Contains(err.Error(), "CreateContainerRequest.OCI.Linux: field 2000") {
		t.Errorf("an unknown field: %v", err)
	}
	c, err := v.dialer.Dial(within(t, 10*time.Second), contract.PortStreams)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, "stream 900 tty\n"); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(c); err != nil || !strings.Contains(string(answer), `unknown field "tty"`) {
		t.Errorf("a greeting with more than a number: %q, %v", answer, err)
	}
}

func (v *vm) testMounts(t *testing.T) {
	for _, kind := range strings.Fields("overlay virtiofs 9p ext4 devtmpfs securityfs debugfs tracefs bpf configfs " +
		"rootfs") {
		m := &pb.Mount{Destination: "/g", Type: kind, Source: "tag"}
		if kind == "overlay" {
			m.Options = []string{"lowerdir=/:/etc"}
		}
		v.refused(t, "a mount of type "+kind, withMount(m))
	}
	v.refused(t, "an option",
		withMount(&pb.Mount{Destination: "/g", Type: "tmpfs", Source: "x", Options: []string{"usrquota"}}))
	v.refused(t, "the guest's files",
		withMount(&pb.Mount{Destination: "/g", Type: "bind", Source: "/etc", Options: []string{"rbind"}}))
}

func (v *vm) testOthers(t *testing.T) {
	v.create(t, "victim", spec("sleep", "1000"))
	for _, p := range []string{"victim", "victim/config.json", "victim/rootfs", "evil", "evil/config.json"} {
		v.refused(t, "a bind of "+p,
			withMount(&pb.Mount{Destination: "/o", Type: "bind", Source: guestRoot + p, Options: []string{"rbind"}}))
	}
	root := spec("true")
	root.Root.Path = guestRoot + "victim/rootfs"
	v.refused(t, "another's root file system", root)
	v.refused(t, "a mount in another's root file system", spec("true"),
		&pb.Storage{Driver: "ephemeral", Source: "tmpfs", Fstype: "tmpfs", MountPoint: guestRoot + "victim/rootfs/bin"})
	_, err := v.agent.CreateContainer(within(t, 60*time.Second), &pb.CreateContainerRequest{
		ContainerId: "victim",
		OCI:         spec("true"),
	})
	if !is(err, errdefs.IsAlreadyExists) {
		t.Errorf("an id that is in use: %v", err)
	}
	v.remove(t, "victim")
	for range 2 { // what is gone is free
		if out, code := v.run(t, "victim", spec("true")); code != 0 {
			t.Errorf("an id of one that is gone: %d, %s", code, out)
		}
	}
}

func (v *vm) testHooks(t *testing.T) {
	hook := spec("true")
	hook.Hooks = &pb.Hooks{StartContainer: []*pb.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "id"}}}}
	v.refused(t, "a hook", hook)
	notes := spec("true")
	notes.Annotations = map[string]string{
		"run.oci.hooks.stdout": "/etc/owned-by-annotation", "run.oci.seccomp_bpf_data": "AAAA",
		"run.oci.pidfd_receiver": "/run/x",
		"run.oci.handler":        "wasm", "module.wasm.image/variant": "compat", "io.kubernetes.x": "y",
	}
	if out, code := v.run(t, "notes", notes); code != 0 { // with any of them crun would fail, or do worse
		t.Errorf("annotations are not dropped: %d, %s", code, out)
	}
	name := spec("true")
	name.Hostname = "a\x1b[2J"
	v.refused(t, "a host name", name)
}

// testSharedInit: the init of a shared pid namespace, for a container that may trace it.
func (v *vm) testSharedInit(t *testing.T) {
	sp := spec("sh", "-c", "ls /proc/1/root/ | wc -l; cat /proc/1/root/init 2>&1 | head -c 40; echo; busybox grep -E "+
		"'^(Cap|NoNew|Uid)' /proc/1/status")
	caps := append([]string{"CAP_SYS_PTRACE", "CAP_SYS_ADMIN"}, sp.Process.Capabilities.Bounding...)
	sp.Process.Capabilities = &pb.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	s := v.open(t)
	_, err := v.agent.CreateContainer(within(t, 60*time.Second), &pb.CreateContainerRequest{
		ContainerId: "tracer", OCI: sp, SandboxPidns: true, StdoutPort: s.ports[1], StderrPort: s.ports[2],
	})
	if err != nil {
		t.Fatal(err)
	}
	v.start(t, "tracer")
	out, _ := io.ReadAll(s.out)
	text := string(out)
	if !strings.HasPrefix(text, "0\n") || strings.Count(text, "\t0000000000000000\n") != 5 ||
		!strings.Contains(text, "NoNewPrivs:\t1\n") || !strings.Contains(text, "Uid:\t65534\t65534\t65534\t65534\n") ||
		!strings.Contains(text, "can't open") {
		t.Errorf("the shared init, with CAP_SYS_PTRACE:\n%s", text)
	}
	v.remove(t, "tracer")
}
