// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package fake_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/coco-shim/coco/azure/akv"
	"github.com/coco-shim/coco/azure/fake"
	"github.com/coco-shim/coco/azure/kwp"
	"github.com/coco-shim/coco/azure/skr"
	"github.com/coco-shim/coco/azure/thim"
)

// level is the patch level of the world's reports.
func (w *world) level() uint64 { return binary.LittleEndian.Uint64(w.made.Evidence.Report[0x180:]) }

func (w *world) store() *thim.Store {
	return &thim.Store{Sources: []thim.Source{
		thim.Host{Client: w.client("THIM"), URL: w.fake.URL(fake.Metadata)},
		thim.Cache{Client: w.client("certificate cache"), URL: w.fake.URL(fake.Cache), ClientID: "a&b"},
	}}
}

func TestCertificatesComeInOrderAndAreKept(t *testing.T) {
	w := newWorld(t, nil)
	chip := thim.Chip{ID: [64]byte(w.made.Evidence.Report[0x1A0:]), TCB: w.level()}
	s := w.store()
	// The host's certificate is for another level than the fake's 0, so both refuse; the errors name them.
	_, err := s.Chain(t.Context(), chip)
	if !errors.Is(err, thim.ErrOtherTCB) || !strings.Contains(err.Error(), "THIM: it has patch level 0000000000000000") ||
		!strings.Contains(err.Error(), "certificate cache: certificate cache: answers 404") {
		t.Errorf("Chain() = %v", err)
	}
	w = newWorld(t, func(o *fake.Options) { o.TCB = chip.TCB })
	s = w.store()
	bare := func(b []byte) string { return strings.ReplaceAll(string(b), "\n", "") }
	for range 2 {
		got, err := s.Chain(t.Context(), chip)
		if err != nil || bare(got) != bare(w.chain()) {
			t.Fatalf("Chain() = %s, %v", got, err)
		}
	}
	if n := w.fake.Asked(fake.Metadata); n != 1 {
		t.Errorf("THIM was asked %d times", n)
	}
	// THIM is away: the cache has it.
	if err := w.fake.SetFaults(fake.Fault{Service: fake.Metadata, Kind: fake.Status, Status: 503}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.store().Chain(t.Context(), chip); err != nil || w.fake.Asked(fake.Cache) != 1 {
		t.Errorf("Chain() = %v", err)
	}
}

func TestADocumentOfTHIM(t *testing.T) {
	good := `{"vcekCert":"A","tcbm":"DB18000000000004","certificateChain":"B","cacheControl":"86400"}`
	d, err := thim.Parse([]byte(good))
	if err != nil || d.TCB != 0xdb18000000000004 || string(d.Chain) != "A\nB" {
		t.Errorf("Parse() = %+v, %v", d, err)
	}
	for _, text := range []string{"", "{}", strings.Replace(good, "DB18", "xy", 1), strings.Replace(good, `"A"`, `""`, 1)} {
		if d, err := thim.Parse([]byte(text)); err == nil {
			t.Errorf("Parse(%s) = %+v", text, d)
		}
	}
}

func TestAFirmwareUpdateDuringARelease(t *testing.T) {
	made := newWorld(t, nil)
	w := newWorld(t, func(o *fake.Options) { o.TCB = made.level() })
	id := w.load(fake.Vault, "pay", secret, w.policy(nil), false)
	reports := 0
	g := &skr.Guest{
		Certificates: w.store(), MAA: w.maa, Vault: w.vault,
		Report: func(_ context.Context, data [64]byte) ([]byte, error) {
			reports++
			return w.made.Again(t, func(b []byte) {
				copy(b[0x50:], data[:])
				if reports == 1 { // the level before the update
					b[0x180]--
				}
			}).Evidence.Report, nil
		},
	}
	k, err := g.Release(t.Context(), id, kwp.RSAAES384)
	if err != nil || !bytes.Equal(k.Material, secret) || reports != 2 {
		t.Errorf("Release() = %v after %d reports", err, reports)
	}
	g.Certificates = &thim.Store{}
	if _, err := g.Release(t.Context(), id, kwp.RSAAES384); err == nil {
		t.Error("a guest without certificates got the key")
	}
	g.Report = func(context.Context, [64]byte) ([]byte, error) { return make([]byte, 100), nil }
	if _, err := g.Release(t.Context(), id, kwp.RSAAES); err == nil || !strings.Contains(err.Error(), "100 bytes") {
		t.Errorf("a short report: %v", err)
	}
	if _, err := g.Release(t.Context(), akv.KeyID{}, kwp.RSAAES); err == nil {
		t.Error("no key was released")
	}
}
