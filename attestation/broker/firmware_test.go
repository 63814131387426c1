// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/coco-shim/coco/attestation/kbs/client"
	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/attestation/snp/snptest"
)

// firmware adds a set that accepts hosts whose SNP firmware has one level.
func (w *world) firmware(set string, level int, end time.Time) {
	w.t.Helper()
	values, err := json.Marshal(map[string]any{
		"snp_launch_measurement": []string{hex.EncodeToString(w.made.Evidence.Report[0x90:0xC0])},
		"init_data":              []string{hex.EncodeToString(w.doc.Digest())},
		"snp_bootloader":         []int{4}, "snp_microcode": []int{213}, "snp_tee_svn": []int{1}, "snp_snp_svn": []int{level},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	message, err := json.Marshal(map[string]any{
		"type": "sample", "payload": base64.StdEncoding.EncodeToString(values), "set": set, "expires": end,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.must("POST", "/kbs/v0/reference-value", message)
}

// without asks who would lose access without a set, and returns the numbers of their attestations.
func (w *world) without(set string) (out answer, numbers []uint64) {
	w.t.Helper()
	text := w.must("POST", "/kbs/v0/admin/what-if", fmt.Appendf(nil, `{"without_set":%q}`, set))
	if err := json.Unmarshal(text, &out); err != nil {
		w.t.Fatalf("%s: %v", text, err)
	}
	for _, c := range out.Changes {
		numbers = append(numbers, c.Number)
	}
	slices.Sort(numbers)
	return out, numbers
}

// An update of the hosts' firmware, from the first host that has it to the end of the old one: what-if names who needs
// the old set, nobody is refused while both stand, and then the refusal names the set that has expired.
func TestAFirmwareUpdateRefusesNobody(t *testing.T) {
	w := begin(t, false, nil)
	level := func(svn byte) *snptest.Made {
		return snptest.Make(t, snptest.Spec{TCB: snp.TCB{Bootloader: 4, TEE: 1, SNP: svn, Microcode: 213}})
	}
	before, after := level(24), level(26)
	attest := func(host *snptest.Made) error {
		w.made = host
		_, err := w.client(nil).Resource(t.Context(), password)
		return err
	}
	w.firmware("firmware-24", 24, snptest.Now.Add(time.Hour))
	if err := attest(before); err != nil { // number 1
		t.Fatal(err)
	}
	// The first host with the new firmware, without pods yet: its evidence is tried before any pod needs it.
	w.made = after
	ev, err := attester{w: w}.Evidence(t.Context(), make([]byte, 48))
	if err != nil {
		t.Fatal(err)
	}
	body := fmt.Appendf(nil, `{"tee":"snp","evidence":%s,"init_data":%q}`, ev, w.doc.Text)
	if text := w.must("POST", "/kbs/v0/admin/check", body); !bytes.Contains(text, []byte("hardware is contraindicated")) {
		t.Errorf("check of the new firmware: %s", text)
	}
	w.firmware("firmware-26", 26, snptest.Now.Add(24*time.Hour))
	if text := w.must("POST", "/kbs/v0/admin/check", body); !bytes.Contains(text, []byte(`"status":"affirming"`)) {
		t.Errorf("check with both sets: %s", text)
	}
	for i, host := range []*snptest.Made{before, after, before, after, after} { // numbers 2 to 6, as hosts are updated
		if err := attest(host); err != nil {
			t.Errorf("attestation %d during the update: %v", i, err)
		}
	}
	if out, numbers := w.without("firmware-24"); out.Looked != 6 || out.Losing != 3 ||
		!slices.Equal(numbers, []uint64{1, 2, 4}) {
		t.Errorf("without the old set %v of %d would lose access, want 1, 2 and 4 of 6", numbers, out.Looked)
	}
	if _, numbers := w.without("firmware-26"); !slices.Equal(numbers, []uint64{3, 5, 6}) {
		t.Errorf("without the new set %v would lose access, want 3, 5 and 6", numbers)
	}
	w.clock.move(61 * time.Minute)
	if err := attest(after); err != nil {
		t.Errorf("the new firmware, after the old set's end: %v", err)
	}
	r, text := reason(attest(before))
	list := w.must("GET", "/kbs/v0/admin/attestations", nil)
	const says = `set \"firmware-24\" of reference values has its values and has expired`
	if r != client.Denied || !bytes.Contains(list, []byte(says)) {
		t.Errorf("the old firmware, after its set's end: %s; %s", text, list)
	}
}
