// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/attestation/snp/snptest"
	"github.com/coco-shim/coco/attestation/tdx"
)

// kernel imitates configfs-tsm: a request has attributes as soon as it is made.
type kernel struct {
	t           *testing.T
	attributes  map[string]string // of each request, but inblob
	generations []string          // of each request in turn; the last one stays
	asked       []string          // inblobs of requests that were removed
	open        int
}

func (k *kernel) make(dir string) error {
	k.open++
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	g := k.generations[0]
	if len(k.generations) > 1 {
		k.generations = k.generations[1:]
	}
	all := map[string]string{"inblob": "", "generation": g + "\n"}
	for name, text := range k.attributes {
		all[name] = text
	}
	for name, text := range all {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (k *kernel) remove(dir string) error {
	k.open--
	in, err := os.ReadFile(filepath.Join(dir, "inblob"))
	if err != nil {
		return err
	}
	k.asked = append(k.asked, string(in))
	return os.RemoveAll(dir)
}

// attester is one on a machine with such a kernel.
func (k *kernel) attester(tee string) TSM {
	root := k.t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, tsmReports), 0o755); err != nil {
		k.t.Fatal(err)
	}
	a, err := New(root, tee)
	if err != nil || a.TEE() != tee {
		k.t.Fatal(err)
	}
	t := a.(TSM)
	t.open, t.remove = k.make, k.remove
	return t
}

func TestReportsOfTheKernel(t *testing.T) {
	report := snptest.Make(t, snptest.Spec{Version: 5}).Evidence.Report
	digest := bytes.Repeat([]byte{9}, 48)
	k := &kernel{t: t, attributes: map[string]string{
		"provider": "sev_guest\n", "outblob": string(report), "auxblob": "",
	}, generations: []string{"2", "3", "1"}}
	text, err := k.attester("snp").Evidence(t.Context(), digest)
	if err != nil {
		t.Fatal(err)
	}
	e, err := snp.ParseEvidence(text)
	if err != nil || !bytes.Equal(e.Report, report) || len(e.Certificates) != 0 {
		t.Errorf("report of SNP: %v\n% x\n% x", err, e.Report, report)
	}
	if len(k.asked) != 3 || k.asked[2] != string(digest)+strings.Repeat("\x00", 16) || k.open != 0 {
		t.Errorf("asked %q, %d requests are left; want three, of which others have changed two", k.asked, k.open)
	}

	k = &kernel{
		t: t, attributes: map[string]string{"provider": "tdx_guest\n", "outblob": "quote"}, generations: []string{"1"},
	}
	a := k.attester("tdx")
	text, err = a.Evidence(t.Context(), digest)
	if err != nil || !json.Valid(text) || !strings.Contains(string(text), `"cc_eventlog":null`) {
		t.Fatalf("%s, %v", text, err)
	}
	log := filepath.Join(a.root, "sys/firmware/acpi/tables/data")
	if err := os.MkdirAll(log, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(log, "CCEL"), []byte("log"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err = a.Evidence(t.Context(), digest); err != nil {
		t.Fatal(err)
	}
	if e, err := tdx.ParseEvidence(text); err != nil || string(e.Report) != "quote" || string(e.EventLog) != "log" {
		t.Errorf("quote of TDX: %+v, %v", e, err)
	}
}

func TestReportsThatAreNoEvidence(t *testing.T) {
	for want, k := range map[string]*kernel{
		"changed by somebody else": {generations: []string{"2"}, attributes: map[string]string{
			"provider": "sev_guest", "outblob": "x",
		}},
		`are of "arm_cca_guest", not of sev_guest`: {generations: []string{"1"}, attributes: map[string]string{
			"provider": "arm_cca_guest\n",
		}},
		"outblob": {generations: []string{"1"}, attributes: map[string]string{"provider": "sev_guest"}},
		"a report of 1 bytes, not 1184": {generations: []string{"1"}, attributes: map[string]string{
			"provider": "sev_guest", "outblob": "x",
		}},
		"has more than": {generations: []string{"1"}, attributes: map[string]string{
			"provider": "sev_guest", "outblob": strings.Repeat("x", maxBlob+1),
		}},
	} {
		k.t = t
		text, err := k.attester("snp").Evidence(t.Context(), []byte{1})
		if text != nil || err == nil || !strings.Contains(err.Error(), want) || k.open != 0 {
			t.Errorf("%s: %s, %v, %d requests are left", want, text, err, k.open)
		}
	}
	k := &kernel{t: t}
	if _, err := k.attester("tdx").Evidence(t.Context(), make([]byte, 65)); err == nil || k.open != 0 {
		t.Errorf("65 bytes: %v", err)
	}
}
