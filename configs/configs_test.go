// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/worktest"
)

var ignoreFiles = cmpopts.IgnoreFields(Config{}, "Files")

func TestExampleIsTheDefaultAndShowsEveryKey(t *testing.T) {
	f, err := os.Open("config-qemu.toml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := Decode("config-qemu.toml", f)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Default(), got, ignoreFiles); d != "" {
		t.Errorf("config-qemu.toml differs from Default (-default +file):\n%s", d)
	}
	text, err := os.ReadFile("config-qemu.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range Keys() {
		_, name, _ := strings.Cut(k, ".")
		if !strings.Contains(string(text), "\n"+name+" = ") {
			t.Errorf("config-qemu.toml does not show %s", k)
		}
	}
}

func TestDocumentationNamesEveryKey(t *testing.T) {
	text, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range Keys() {
		if !strings.Contains(string(text), "`"+k+"`") {
			t.Errorf("docs/configuration.md does not name %s", k)
		}
	}
	for _, k := range PodKeys() {
		if !strings.Contains(string(text), "`"+contract.ConfigPrefix+k+"`") {
			t.Errorf("docs/configuration.md does not name the annotation %s", contract.ConfigPrefix+k)
		}
	}
}

func TestDecode(t *testing.T) {
	tests := []struct {
		name string
		text string
		want func(*Config)
		err  []string // lines of the error, in order
	}{
		{name: "empty text is the default", want: func(*Config) {}},
		{
			name: "values of every type",
			text: "[hypervisor]\npath = \"/opt/q\"\ndefault_vcpus = 2\nmax_memory_mib = 4096\nseccomp = false\nboot_timeout = " +
				"\"1m30s\"\n[runtime]\nenable_annotations = []\n",
			want: func(c *Config) {
				c.Hypervisor.Path, c.Hypervisor.DefaultVCPUs, c.Hypervisor.MaxMemoryMiB = "/opt/q", 2, 4096
				c.Hypervisor.Seccomp, c.Hypervisor.BootTimeout = false, 90*time.Second
				c.Runtime.EnableAnnotations = []string{}
			},
		},
		{
			name: "dotted keys and inline tables are TOML too",
			text: "hypervisor.default_vcpus = 3\nnetwork = { model = \"none\" }\n",
			want: func(c *Config) { c.Hypervisor.DefaultVCPUs, c.Network.Model = 3, "none" },
		},
		{
			name: "all problems at once, in the order of lines",
			text: strings.Join([]string{
				"[hypervisor]",
				"pth = \"/usr/bin/qemu\"",     // 2
				"default_memory_mib = 16",     // 3
				"default_vcpus = \"two\"",     // 4
				"kernel = \"boot/vmlinux\"",   // 5
				"boot_timeout = 60",           // 6
				"[runtim]",                    // 7
				"x = 1",                       // 8
				"[network]",                   // 9
				"model = \"macvtap\"",         // 10
				"queues_per_nic = 1.5",        // 11
				"[runtime]",                   // 12
				"enable_annotations = [1]",    // 13
				"create_timeout = \"soon\"",   // 14
				"upper_size_mib = -1",         // 15
				"log_level = { a = 1 }",       // 16
				"state_dir = 1979-05-27",      // 17
				"layer_cache = [\"/x\"]",      // 18
				"stop_timeout = \"1000000h\"", // 19
			}, "\n"),
			err: []string{
				`t.toml:2: hypervisor.pth: unknown key; expected one of type, path, machine,`,
				`t.toml:3: hypervisor.default_memory_mib: 16 is below 128; expected an integer from 128 to 16777216`,
				`t.toml:4: hypervisor.default_vcpus: is a string; expected an integer from 1 to 1024`,
				`t.toml:5: hypervisor.kernel: "boot/vmlinux" is not an absolute path; expected the absolute path of the guest kernel`,
				`t.toml:6: hypervisor.boot_timeout: is an integer; expected a duration from "1s" to "1h0m0s", as in "60s"`,
				`t.toml:7: runtim: unknown section; expected one of hypervisor, runtime, network`,
				`t.toml:10: network.model: "macvtap" is not known; expected one of "tcfilter", "none"`,
				`t.toml:11: network.queues_per_nic: is a float; expected an integer from 1 to 16`,
				`t.toml:13: runtime.enable_annotations: element 1 is an integer, not a string; expected a list`,
				`t.toml:14: runtime.create_timeout: "soon" is not a duration; expected`,
				`t.toml:15: runtime.upper_size_mib: -1 is negative; expected 0 or an integer from 16 to 1048576`,
				`t.toml:16: runtime.log_level: is a table; expected one of "error", "warn", "info", "debug"`,
				`t.toml:17: runtime.state_dir: is a date; expected the absolute path of a directory on a tmpfs`,
				`t.toml:18: runtime.layer_cache: is an array; expected the absolute path`,
				`t.toml:19: runtime.stop_timeout: "1000000h0m0s" is above "1h0m0s"; expected`,
			},
		},
		{name: "syntax error", text: "[hypervisor]\npath = \n", err: []string{`t.toml:2: not TOML: `}},
		{name: "key twice", text: "[network]\nmodel = \"none\"\nmodel = \"none\"\n", err: []string{`t.toml:3: not TOML: `}},
		{
			name: "section is a value", text: "network = 1\n",
			err: []string{`t.toml:1: network: is not a section; expected a table [network]`},
		},
		{
			name: "section is an array of tables", text: "[[network]]\nmodel=\"none\"\n",
			err: []string{`network: is not a section; expected a table [network]`},
		},
		{
			name: "key outside of a section", text: "path = \"/x\"\n",
			err: []string{`t.toml:1: path: unknown key outside of a section; expected one of hypervisor`},
		},
		{name: "case matters", text: "[Hypervisor]\n", err: []string{`Hypervisor: unknown section`}},
		{
			name: "null byte in a path", text: "[hypervisor]\npath = \"/a\\u0000b\"\n",
			err: []string{`holds a control character`},
		},
		{
			name: "comma in a machine type", text: "[hypervisor]\nmachine = \"q35,confidential-guest-support=x\"\n",
			err: []string{`holds ','`},
		},
		{
			name: "empty path", text: "[hypervisor]\npath = \"\"\n",
			err: []string{`t.toml:2: hypervisor.path: must not be empty; expected the absolute path of the VMM binary`},
		},
		{
			name: "TEE without firmware, with console and emulation",
			text: "[hypervisor]\nplatform = \"snp\"\naccel = \"tcg\"\ninsecure_debug_console = true\n", err: []string{
				`t.toml: hypervisor.cpu_model: "" is not one model, but SNP measures which it is (by default); expected a named model`,
				`t.toml: hypervisor.firmware: is empty, but platform "snp" boots through firmware (by default); expected`,
				`t.toml:3: hypervisor.accel: "tcg" cannot run platform "snp"; expected "" or "kvm"`,
				`t.toml:4: hypervisor.insecure_debug_console: `,
			},
		},
		{
			name: "default above the maximum", text: "[hypervisor]\nmax_vcpus = 2\ndefault_vcpus = 4\nmax_memory_mib = 256\n",
			err: []string{
				`hypervisor.default_memory_mib: 512 is above hypervisor.max_memory_mib, which is 256`,
				`t.toml:3: hypervisor.default_vcpus: 4 is above hypervisor.max_vcpus, which is 2`,
			},
		},
		{
			name: "virtio-blk without ports", text: "[hypervisor]\nblock_bus = \"virtio-blk\"\n",
			err: []string{`hypervisor.hotplug_ports: is 0, but`},
		},
		{
			name: "administrator's key in the pods' list", text: "[runtime]\nenable_annotations = [\"hypervisor.path\"]\n",
			err: []string{`t.toml:2: runtime.enable_annotations: "hypervisor.path" may be set by the administrator only; expected`},
		},
		{
			name: "unknown key in the pods' list", text: "[runtime]\nenable_annotations = [\"x\"]\n",
			err: []string{`"x" is not a key`},
		},
		{name: "too long", text: strings.Repeat("#", maxFile+1), err: []string{`is longer than 1048576 bytes`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Decode("t.toml", strings.NewReader(tt.text))
			if tt.err != nil {
				checkLines(t, err, tt.err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := Default()
			tt.want(&want)
			if d := cmp.Diff(want, got, ignoreFiles); d != "" {
				t.Errorf("Decode (-want +got):\n%s", d)
			}
		})
	}
}

func checkLines(t *testing.T, err error, want []string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("error is not errdefs.ErrInvalidArgument: %v", err)
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d problems, want %d:\n%v", len(lines), len(want), err)
	}
	for i, l := range lines {
		if !strings.Contains(l, want[i]) {
			t.Errorf("problem %d = %s\nwant            %s", i, l, want[i])
		}
	}
}

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLoadMergesDropInsInOrder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "odd[name]*")
	write(t, dir, map[string]string{
		"config.toml":               "[hypervisor]\ndefault_vcpus = 2\nmachine = \"q35\"\n",
		"config.d/20-b.toml":        "[hypervisor]\ndefault_vcpus = 4\n",
		"config.d/10-a.toml":        "[hypervisor]\ndefault_vcpus = 3\ndefault_memory_mib = 1024\n",
		"config.d/README":           "not a drop-in",
		"config.d/30-off.toml.save": "[nonsense]",
	})
	path := filepath.Join(dir, "config.toml")
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Hypervisor.DefaultVCPUs, want.Hypervisor.DefaultMemoryMiB = 4, 1024
	want.Files = []string{path, filepath.Join(dir, "config.d/10-a.toml"), filepath.Join(dir, "config.d/20-b.toml")}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("Load (-want +got):\n%s", d)
	}
	t.Run("the variable names the file", func(t *testing.T) {
		t.Setenv(EnvFile, path)
		got, err := Load("")
		if err != nil || got.Hypervisor.DefaultVCPUs != 4 {
			t.Errorf("Load = %+v, %v", got, err)
		}
	})
	t.Run("a problem names the drop-in that caused it", func(t *testing.T) {
		write(t, dir, map[string]string{"config.d/30-c.toml": "[hypervisor]\nmax_vcpus = 1\n", "config.d/40-d.toml": "[x]\n"})
		_, err := Load(path)
		checkLines(t, err, []string{
			filepath.Join(dir, "config.d/20-b.toml") +
				":2: hypervisor.default_vcpus: 4 is above hypervisor.max_vcpus, which is 1",
			filepath.Join(dir, "config.d/40-d.toml") + ":1: x: unknown section",
		})
	})
}

func TestLoadRefusesWhatIsNotAFile(t *testing.T) {
	dir := t.TempDir()
	t.Run("missing", func(t *testing.T) {
		_, err := Load(filepath.Join(dir, "no.toml"))
		checkLines(t, err, []string{"no.toml: the configuration file does not exist; expected a readable TOML file"})
	})
	t.Run("missing, named by the variable", func(t *testing.T) {
		t.Setenv(EnvFile, filepath.Join(dir, "env.toml"))
		_, err := Load("")
		checkLines(t, err, []string{"env.toml: the configuration file does not exist"})
	})
	t.Run("directory", func(t *testing.T) {
		_, err := Load(dir)
		checkLines(t, err, []string{"cannot be read: is a directory, not a regular file"})
	})
	t.Run("relative", func(t *testing.T) {
		_, err := Load("config-qemu.toml")
		checkLines(t, err, []string{"config-qemu.toml: the configuration file's path is relative; expected an absolute path"})
	})
}

func TestWithAnnotations(t *testing.T) {
	base := Default()
	base.Hypervisor.MaxVCPUs = 8
	tests := []struct {
		name string
		in   map[string]string
		want func(*Config)
		err  []string
	}{
		{name: "others are ignored", in: map[string]string{
			"io.kubernetes.cri.container-type": "sandbox",
			"io.coco.other":                    "x",
		}, want: func(*Config) {}},
		{
			name: "allowed keys",
			in: map[string]string{
				"io.coco.config.hypervisor.default_vcpus":      "4",
				"io.coco.config.hypervisor.default_memory_mib": "1024",
			},
			want: func(c *Config) { c.Hypervisor.DefaultVCPUs, c.Hypervisor.DefaultMemoryMiB = 4, 1024 },
		},
		{
			name: "unknown, not allowed, wrong type: all named",
			in: map[string]string{
				"io.coco.config.hypervisor.path":               "/bin/sh",
				"io.coco.config.hypervisor.nonsense":           "1",
				"io.coco.config.hypervisor.default_vcpus":      "many",
				"io.coco.config.hypervisor.default_memory_mib": "1",
				"io.coco.config.runtime.enable_annotations":    "hypervisor.path",
			},
			err: []string{
				`annotation io.coco.config.hypervisor.default_vcpus: hypervisor.default_vcpus: is a string; expected an integer from 1 to 1024`,
				`annotation io.coco.config.hypervisor.nonsense: is unknown; expected one of runtime.enable_annotations: hypervisor.default_vcpus, hypervisor.default_memory_mib`,
				`annotation io.coco.config.hypervisor.path: is not allowed; expected one of`,
				`annotation io.coco.config.runtime.enable_annotations: is not allowed; expected one of`,
				`annotation io.coco.config.hypervisor.default_memory_mib: hypervisor.default_memory_mib: 1 is below 128`,
			},
		},
		{
			name: "above the administrator's maximum",
			in:   map[string]string{"io.coco.config.hypervisor.default_vcpus": "9"},
			err:  []string{`annotation io.coco.config.hypervisor.default_vcpus: hypervisor.default_vcpus: 9 is above hypervisor.max_vcpus, which is 8`},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := base.WithAnnotations(tt.in)
			if tt.err != nil {
				checkLines(t, err, tt.err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := base
			tt.want(&want)
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("WithAnnotations (-want +got):\n%s", d)
			}
		})
	}
}

func TestBootResolvesTheGuestImage(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"manifest.json": `{"cmdline":"quiet panic=-1","files":[]}`})
	h := Default().Hypervisor
	h.GuestDir, h.KernelParams = dir, "debug"
	got, err := h.Boot()
	want := BootFiles{Kernel: dir + "/vmlinux", Initrd: dir + "/initrd.img", Cmdline: "quiet panic=-1 debug " +
		contract.ParamPortForward + " " + contract.ParamResolver}
	if err != nil || got != want {
		t.Errorf("Boot = %+v, %v, want %+v", got, err, want)
	}
	h.Platform, h.Firmware, h.GuestDir = "snp", "/fw", filepath.Join(dir, "none")
	got, err = h.Boot()
	want = BootFiles{
		Kernel: dir + "/none/vmlinuz", Initrd: dir + "/none/initrd.img", Firmware: "/fw",
		Cmdline: contract.Cmdline + " debug",
	}
	if err != nil || got != want {
		t.Errorf("Boot = %+v, %v, want %+v", got, err, want)
	}
	write(t, dir, map[string]string{"manifest.json": `{"cmdline":"a\nb"}`})
	h.GuestDir = dir
	if _, err := h.Boot(); err == nil || !strings.Contains(err.Error(), "cmdline") {
		t.Errorf("Boot = %v, want an error about the command line", err)
	}
}

func TestCheckFilesSaysWhatToDo(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"qemu": "#!", "initrd.img": ""})
	c := Default()
	c.Hypervisor.GuestDir, c.Hypervisor.Path = dir, filepath.Join(dir, "qemu")
	err := c.CheckFiles()
	if !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Fatalf("CheckFiles = %v, want errdefs.ErrFailedPrecondition", err)
	}
	for _, want := range []string{
		"VMM " + dir + "/qemu: is not executable; install QEMU",
		"guest kernel " + dir + "/vmlinux: does not exist; build and install the guest image (make image install), or set " +
			"hypervisor.kernel",
		"guest initramfs " + dir + "/initrd.img: is empty",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("CheckFiles = %v\nwant %s", err, want)
		}
	}
	write(t, dir, map[string]string{"vmlinux": "x", "initrd.img": "x"})
	if err := os.Chmod(c.Hypervisor.Path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := c.CheckFiles(); err != nil {
		t.Errorf("CheckFiles = %v, want nil", err)
	}
}

func FuzzDecode(f *testing.F) {
	text, err := os.ReadFile("config-qemu.toml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(text), "4")
	f.Add("[hypervisor]\npath = 1\n[[runtime]]\n", "x")
	f.Add("a.b.c = {d = [1, {e = 1}]}\n", "")
	f.Add(strings.Repeat("a.", 5000)+"a = 1", "")
	f.Fuzz(func(t *testing.T, text, value string) {
		defer worktest.Bound(t, len(text)+len(value))()
		c, err := Decode("f", strings.NewReader(text))
		if err != nil {
			var ps Problems
			if !errors.As(err, &ps) || len(ps) == 0 {
				t.Fatalf("Decode error is not Problems: %v", err)
			}
			return
		}
		if _, err := merge(nil); err != nil {
			t.Fatal(err)
		}
		d := &decoder{cfg: c, set: map[string]origin{}}
		if d.validate(); len(d.problems) > 0 {
			t.Fatalf("Decode accepted what does not validate: %v", d.problems)
		}
		for _, k := range Keys() {
			if got, err := c.WithAnnotations(map[string]string{contract.ConfigPrefix + k: value}); err == nil {
				d := &decoder{cfg: got, set: map[string]origin{}}
				if d.validate(); len(d.problems) > 0 {
					t.Fatalf("WithAnnotations accepted what does not validate: %v", d.problems)
				}
			}
		}
	})
}

// TestDeepKeysTakeLittleWork: 20 KB of them took seconds and gigabytes.
func TestDeepKeysTakeLittleWork(t *testing.T) {
	const n = 20_000
	for name, text := range map[string]string{
		"a dotted key":  strings.Repeat("a.", n) + "a = 1",
		"a table":       "[" + strings.Repeat("a.", n) + "a]",
		"inline tables": "a = " + strings.Repeat("{a=", n),
		"lists":         "a = " + strings.Repeat("[", n),
		"the most":      strings.Repeat("a.", maxStructure) + "a = 1",
	} {
		t.Run(name, func(t *testing.T) {
			defer worktest.Times(t, len(text), 4)()
			if _, err := Decode("f", strings.NewReader(text)); err == nil {
				t.Error("Decode = nil")
			}
		})
	}
}
