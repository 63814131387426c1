// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/clh"
	"github.com/coco-shim/coco/hypervisor/clh/clhtest"
	"github.com/coco-shim/coco/hypervisor/jail"
	"github.com/coco-shim/coco/hypervisor/launch"
	"github.com/coco-shim/coco/hypervisor/vmm"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/virtcontainers"
	"github.com/coco-shim/coco/virtcontainers/host"
)

// imitated forks as the host's driver does, in a jail where the imitation can do what the VMM does not: read
// descriptions of the API, and write down its requests.
func imitated(v *clhtest.VMM) vmm.Fork {
	return func(ctx context.Context, p hypervisor.Place) (hypervisor.Process, error) {
		return launch.Start(ctx, launch.Options{NetNS: p.NetNS, Jail: &jail.Options{
			User: p.User, Processes: p.Processes, Disks: true,
			Paths: v.Paths, Kept: append(v.Kept, p.Dir),
		}})
	}
}

// A pod of two containers on the Cloud Hypervisor driver, with a real guest: behind the API, which is an
// imitation, QEMU runs the VM on a root bus that takes devices as Cloud Hypervisor's does. The first
// container's layer is there from boot or plugged, the second's is plugged into the running guest.
func TestPodOnCloudHypervisorsAPI(t *testing.T) {
	testvm.Need(t, testvm.Root, testvm.QEMU, testvm.GuestImage, testvm.Busybox, testvm.Netns)
	for _, landlock := range []bool{false, true} {
		t.Run(fmt.Sprintf("landlock=%v", landlock), func(t *testing.T) {
			imitation := clhtest.New(t, clhtest.Config{QEMU: configs.Default().Hypervisor.Path})
			dir := t.TempDir()
			text := fmt.Sprintf("[hypervisor]\ntype = \"clh\"\npath = %q\nguest_dir = %q\nlandlock = %v\nboot_timeout = "+
				"\"2m\"\n[runtime]\nstate_dir = %q\nlayer_cache = %q\n",
				imitation.Path, testvm.GuestDir(), landlock, filepath.Join(dir, "run"), filepath.Join(dir, "layers"))
			cfg, err := configs.Decode("clh.toml", strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			log := slog.New(slog.NewTextHandler(t.Output(), nil))
			h, err := host.New(cfg, "", log)
			if err != nil {
				t.Fatal(err)
			}
			h.Driver = vmm.NewDriver(clh.New(clh.Options{
				Path: imitation.Path, Landlock: landlock, Staging: filepath.Join(cfg.Runtime.LayerCache, "plug"), Log: log,
				KVM: func() error { return nil }, // the stand-in needs none
			}), imitated(imitation))
			first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
			rootfs(t, filepath.Join(first, "rootfs"))
			rootfs(t, filepath.Join(second, "rootfs"))
			sandbox := spec("sh", "-c", "echo one; uname -r")
			p, err := virtcontainers.CreatePod(t.Context(), virtcontainers.Options{
				ID: "box", Namespace: "test", Bundle: dir, Spec: sandbox, Config: cfg, Host: h, Log: log,
			})
			if err != nil {
				t.Fatalf("CreatePod() = %v", err)
			}
			defer func() {
				if err := p.Shutdown(context.Background()); err != nil {
					t.Errorf("Shutdown() = %v", err)
				}
				if names, _ := filepath.Glob(filepath.Join(dir, "run/*")); len(names) > 0 {
					t.Errorf("left: %q", names)
				}
				for _, call := range []string{"vm.add-disk", "vm.remove-device", "vmm.shutdown"} {
					if !strings.Contains(strings.Join(imitation.Calls(), " "), call) {
						t.Errorf("no %s among %v", call, imitation.Calls())
					}
				}
			}()
			for i, bundle := range []string{first, second} {
				id := fmt.Sprintf("c%d", i)
				s := sandbox
				if i == 1 {
					s = spec("sh", "-c", "echo two; exit 2")
				}
				s.Linux.Namespaces = append([]specs.LinuxNamespace(nil), s.Linux.Namespaces...)
				s.Linux.CgroupsPath = "/coco-test/" + id
				c, st, err := p.CreateContainer(t.Context(), virtcontainers.ContainerRequest{
					ID: id, Bundle: bundle, Spec: s,
					Stdout: true, Stderr: true,
				})
				if err != nil {
					t.Fatalf("CreateContainer(%s) = %v", id, err)
				}
				if _, err := c.Init().Start(t.Context()); err != nil {
					t.Fatalf("Start(%s) = %v", id, err)
				}
				out := read(t, st.Stdout)
				exit, err := c.Init().Wait(t.Context())
				if want := []string{"one\n", "two\n"}[i]; err != nil || !strings.HasPrefix(out, want) ||
					exit.Code != []uint32{0, 2}[i] {
					t.Errorf("%s printed %q and exited with %+v, %v", id, out, exit, err)
				}
				if _, err := c.Init().Delete(t.Context()); err != nil {
					t.Errorf("Delete(%s) = %v", id, err)
				}
			}
		})
	}
}
