// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clh

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/hypervisor/clh/clhapi"
	"github.com/coco-shim/coco/internal/worktest"
)

// As Cloud Hypervisor writes them (event_monitor/src/lib.rs).
const (
	bootedEvent = "{\n  \"timestamp\": {\n    \"secs\": 0,\n    \"nanos\": 5001\n  },\n  \"source\": \"vm\",\n  " +
		"\"event\": \"booted\",\n  \"properties\": null\n}\n\n"
	activatedEvent = "{\n  \"timestamp\": {\n    \"secs\": 1,\n    \"nanos\": 2\n  },\n  \"source\": " +
		"\"virtio-device\",\n  \"event\": \"activated\",\n  \"properties\": {\n    \"id\": \"vsock0\"\n  }\n}\n\n"
)

func TestReadEvents(t *testing.T) {
	booted, activated := event{Source: "vm", Name: "booted"},
		event{"virtio-device", "activated", map[string]string{"id": "vsock0"}}
	long := "{\"source\": \"" + strings.Repeat("a", 2*maxEvent) + "\", \"event\": \"x\"}\n\n"
	lines := "{\"source\": \"a\",\n" + strings.Repeat("\n \"x\": 1,"[1:]+"\n", maxEvent/4) + "\"event\": \"x\"}\n\n"
	for _, tt := range []struct {
		name, in string
		want     []event
		garbled  int
	}{
		{"nothing", "", nil, 0},
		{"two", bootedEvent + activatedEvent, []event{booted, activated}, 0},
		{"more empty lines", "\n\n" + bootedEvent + "\n" + activatedEvent, []event{booted, activated}, 0},
		{"the last is cut short", bootedEvent + activatedEvent[:40], []event{booted}, 1},
		{"the last lacks its empty line", bootedEvent + strings.TrimSpace(activatedEvent), []event{booted}, 1},
		{"one is cut short", bootedEvent[:30] + "\n\n" + activatedEvent, []event{activated}, 1},
		{"one without an end swallows the next", bootedEvent[:30] + activatedEvent + bootedEvent, []event{booted}, 1},
		{"a long line", long + bootedEvent, []event{booted}, 1},
		{"many lines", lines + bootedEvent, []event{booted}, 1},
		{"not an object", "[1]\n\n" + bootedEvent, []event{booted}, 1},
		{"without a name", "{\"source\": \"vm\"}\n\n" + bootedEvent, []event{booted}, 1},
		{
			"properties of another kind", "{\"source\": \"vm\", \"event\": \"x\", \"properties\": {\"a\": 1}}\n\n" + bootedEvent,
			[]event{booted},
			1,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []event
			garbled := readEvents(iotest.OneByteReader(strings.NewReader(tt.in)), func(e event) { got = append(got, e) })
			if d := cmp.Diff(tt.want, got); d != "" || garbled != tt.garbled {
				t.Errorf("readEvents() leaves out %d, want %d (-want +got):\n%s", garbled, tt.garbled, d)
			}
		})
	}
}

func FuzzReadEvents(f *testing.F) {
	f.Add([]byte(bootedEvent + activatedEvent))
	f.Add([]byte("\n\n{\n\n" + bootedEvent))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		n := 0
		readEvents(strings.NewReader(string(b)), func(e event) {
			if n++; e.Source == "" || e.Name == "" {
				t.Errorf("an event without a name: %v", e)
			}
		})
		// After any input, an event behind an empty line is parsed.
		last := ""
		readEvents(strings.NewReader(string(b)+"\n\n"+bootedEvent), func(e event) { last = e.Source + " " + e.Name })
		if last != "vm booted" {
			t.Errorf("after %q the next event is %q", b, last)
		}
	})
}

func TestReadOK(t *testing.T) {
	for in, ok := range map[string]bool{
		"OK 1073741824\n": true, "OK 0\n": true, "OK 4294967295\n": true,
		"OK 4294967296\n": false, "OK -1\n": false, "OK 01\n": false, "OK +1\n": false, "OK \n": false, "OK 1": false,
		"OK 1\r\n": false, "ok 1\n": false, "\n": false, "OK  1\n": false,
		"OK 11111111111111111111111111\n": false, "YES 1\n": false,
	} {
		rest := strings.NewReader(in + "guest")
		if in == "OK 1" {
			rest = strings.NewReader(in)
		}
		err := readOK(rest)
		if (err == nil) != ok || errors.Is(err, errRefused) {
			t.Errorf("readOK(%q) = %v, want success: %v", in, err, ok)
		}
		if left, _ := io.ReadAll(rest); ok && string(left) != "guest" {
			t.Errorf("readOK(%q) left %q, want what the guest says", in, left)
		}
	}
	if err := readOK(strings.NewReader("")); !errors.Is(err, errRefused) {
		t.Errorf("readOK of nothing = %v, want errRefused", err)
	}
}

func FuzzReadOK(f *testing.F) {
	f.Add("OK 1\nx")
	f.Add("OK 4294967296\n")
	f.Fuzz(func(t *testing.T, in string) {
		defer worktest.Bound(t, len(in))()
		r := strings.NewReader(in)
		if err := readOK(r); err != nil {
			return
		}
		line := in[:len(in)-r.Len()]
		if !strings.HasPrefix(line, "OK ") || strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") ||
			len(line) > maxOK {
			t.Errorf("readOK takes %q", line)
		}
	})
}

func TestParseBDF(t *testing.T) {
	for in, want := range map[string]string{
		"0000:00:01.0": "01", "0000:00:1f.0": "1f", "0000:00:0a.0": "0a",
		"0000:00:00.0": "", "0000:00:20.0": "", "0000:00:0A.0": "", "0000:00:1.0": "", "0000:00:01.1": "", "0001:00:01.0": "",
		"0000:01:01.0": "", "": "", "01": "", "0000:00:+1.0": "",
	} {
		if got, err := parseBDF(in); got.slot != want || (err == nil) != (want != "") {
			t.Errorf("parseBDF(%q) = %v, %v, want %q", in, got, err, want)
		}
	}
}

func TestAddressOf(t *testing.T) {
	info := clhapi.VmInfo{DeviceTree: map[string]clhapi.DeviceNode{
		"disk-a": {Id: "disk-a", Parent: "_virtio-pci-disk-a"}, "_virtio-pci-disk-a": {PciBdf: "0000:00:03.0"},
		"dev-gpu": {PciBdf: "0000:00:04.0"}, "disk-lost": {},
	}}
	for name, want := range map[string]string{"disk-a": "03", "dev-gpu": "04", "disk-lost": "", "disk-b": ""} {
		if got, err := addressOf(info, name); got.slot != want || (err == nil) != (want != "") {
			t.Errorf("addressOf(%s) = %v, %v, want %q", name, got, err, want)
		}
	}
}

func TestDescribe(t *testing.T) {
	help := "Usage: cloud-hypervisor [OPTIONS]\n      --igvm <igvm>\n          Path to IGVM file to load.\n      " +
		"--host-data <host-data>\n      --hostile\n"
	got, err := describe("cloud-hypervisor v52.1-3-gabc\n", help)
	if d := cmp.Diff(Info{52, "v52.1-3-gabc", []string{"igvm", "sev_snp"}}, got); err != nil || d != "" {
		t.Errorf("describe() = %v (-want +got):\n%s", err, d)
	}
	for _, version := range []string{"", "cloud-hypervisor", "QEMU emulator version 10.0.2", "cloud-hypervisor dev"} {
		if got, err := describe(version, help); err == nil {
			t.Errorf("describe(%q) = %v", version, got)
		}
	}
	if _, err := Inspect(t.Context(), "/bin/true"); err == nil {
		t.Error("Inspect() of /bin/true = nil")
	}
	if _, err := Inspect(t.Context(), "/nonexistent"); err == nil {
		t.Error("Inspect() of nothing = nil")
	}
}

func TestReasons(t *testing.T) {
	many := "[" + strings.TrimSuffix(strings.Repeat(`"`+strings.Repeat("a", 2*maxReason)+`",`, 100), ",") + "]"
	for in, want := range map[string]string{
		"":                                    "no reason was given",
		`["Error from API","The VM\ndied"]`:   "Error from API: The VM.died",
		"The VM could not boot":               "The VM could not boot",
		"[]":                                  "[]",
		`{"a":1}`:                             `{"a":1}`,
		"\x1b[31m" + strings.Repeat("x", 500): ".[31m" + strings.Repeat("x", maxErrorText-5),
		many: strings.TrimSuffix(strings.Repeat(strings.Repeat("a", maxReason)+": ",
			maxReasons), ": "),
	} {
		if got := reasons([]byte(in)); got != want {
			t.Errorf("reasons(%.60q) = %.80q, want %.80q", in, got, want)
		}
	}
}
