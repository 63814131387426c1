// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/plan/launch"
)

// described is a pod whose VM has all files that a VM can have.
func described(t *testing.T) Options {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(name), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	c := configs.Default()
	c.Hypervisor.Path, c.Hypervisor.Kernel, c.Hypervisor.Initrd = file("qemu"), file("kernel"), file("initrd")
	c.Hypervisor.Initdata = file("initdata.toml")
	text := "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\nword = \"a\"\n"
	if err := os.WriteFile(c.Hypervisor.Initdata, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	memory := int64(256 << 20)
	return Options{
		ID: "pod", Config: c, Log: slog.New(slog.DiscardHandler),
		Host: Host{Machine: launch.Machine{CPUs: 8, MemoryMiB: 64 << 10}},
		Spec: &specs.Spec{
			Linux:       &specs.Linux{Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &memory}}},
			Annotations: map[string]string{},
		},
	}
}

// differs checks that a pod's VM is not taken for that of another pod.
func differs(t *testing.T, what, key string, o Options) {
	t.Helper()
	if got, err := Kind(t.Context(), o); err == nil && got == key {
		t.Errorf("%s: the key is the same", what)
	}
}

// The key of a VM that waits depends on every key of the configuration, measured or not.
func TestEveryKeyOfTheConfigurationTellsVMsThatWaitApart(t *testing.T) {
	o := described(t)
	key, err := Kind(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	o.ID = "another"
	if again, err := Kind(t.Context(), o); err != nil || again != key {
		t.Fatalf("the key of a pod with another name is %s, %v, not %s", again, err, key)
	}
	leaves := 0
	var walk func(path string, v reflect.Value)
	walk = func(path string, v reflect.Value) {
		if v.Kind() == reflect.Struct {
			for i := range v.NumField() {
				walk(path+"."+v.Type().Field(i).Name, v.Field(i))
			}
			return
		}
		leaves++
		old := reflect.New(v.Type()).Elem()
		old.Set(v)
		switch v.Kind() {
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.String:
			v.SetString(v.String() + "x")
		case reflect.Slice:
			v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
		case reflect.Int, reflect.Int64:
			v.SetInt(v.Int() + 1)
		case reflect.Uint32, reflect.Uint64:
			v.SetUint(v.Uint() + 1)
		default:
			t.Errorf("%s is a %s: teach this test to change one", path, v.Kind())
		}
		differs(t, path, key, o)
		v.Set(old)
	}
	walk("Config", reflect.ValueOf(&o.Config).Elem())
	if again, err := Kind(t.Context(), o); err != nil || again != key {
		t.Errorf("the key is %s, %v after all changes were undone, not %s", again, err, key)
	}
	t.Logf("%d keys", leaves)
}

// It depends on the initdata, the pod's size, the files of the guest and the programs.
func TestEveryInputOfTheLaunchTellsVMsThatWaitApart(t *testing.T) {
	for name, change := range map[string]func(o *Options) error{
		"a byte of the initdata": func(o *Options) error {
			text, err := os.ReadFile(o.Config.Hypervisor.Initdata)
			if err != nil {
				return err
			}
			return os.WriteFile(o.Config.Hypervisor.Initdata, []byte(strings.Replace(string(text), `"a"`, `"b"`, 1)), 0o644)
		},
		"a comment in the initdata": func(o *Options) error {
			f, err := os.OpenFile(o.Config.Hypervisor.Initdata, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteString("# more\n")
			return err
		},
		"no initdata": func(o *Options) error { o.Config.Hypervisor.Initdata = ""; return nil },
		"the pod's memory": func(o *Options) error {
			*o.Spec.Linux.Resources.Memory.Limit *= 2
			return nil
		},
		"the pod's processors": func(o *Options) error {
			quota := int64(400_000)
			o.Spec.Linux.Resources.CPU = &specs.LinuxCPU{Quota: &quota}
			return nil
		},
		"the sandbox's memory": func(o *Options) error {
			o.Spec.Annotations[contract.CRISandboxMemory] = "1073741824"
			return nil
		},
		"the rehearsed configuration": func(o *Options) error { c := configs.Default(); o.Rehearse = &c; return nil },
		"the kernel":                  func(o *Options) error { return replace(o.Config.Hypervisor.Kernel) },
		"the initramfs":               func(o *Options) error { return replace(o.Config.Hypervisor.Initrd) },
		"the VMM":                     func(o *Options) error { return replace(o.Config.Hypervisor.Path) },
		"the kernel's bytes": func(o *Options) error {
			return os.WriteFile(o.Config.Hypervisor.Kernel, []byte("k"), 0o755)
		},
	} {
		o := described(t)
		key, err := Kind(t.Context(), o)
		if err == nil {
			err = change(&o)
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		differs(t, name, key, o)
	}
}

// replace gives a file's name to another file with the same bytes.
func replace(path string) error {
	text, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path+".new", text, 0o755)
	}
	if err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// A pod that a VM cannot be plugged together for while it runs is told so.
func TestPodsThatNoVMWaitsFor(t *testing.T) {
	o := described(t)
	if err := Unfit(o); err != nil {
		t.Errorf("an ordinary pod: %v", err)
	}
	live := o
	live.Config.Runtime.HostPath = configs.HostPathLive
	hooked := o
	hooked.Spec = &specs.Spec{Hooks: &specs.Hooks{}, Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
		{Type: specs.NetworkNamespace, Path: "/run/netns/x"},
	}}}
	for want, o := range map[string]Options{"live files": live, "hooks": hooked} {
		if err := Unfit(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}
