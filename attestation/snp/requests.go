// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/coco-shim/coco/attestation"
)

// Kinds of AMD's documents.
const (
	KindVCEK  attestation.Kind = "snp-vcek"
	KindVLEK  attestation.Kind = "snp-vlek"
	KindChain attestation.Kind = "snp-chain" // ASK or ASVK, and ARK
	KindCRL   attestation.Kind = "snp-crl"
)

// kds is AMD's Key Distribution Service.
const kds = "https://kdsintf.amd.com"

// Requests returns the documents that the report of evidence needs beyond those that are built in: the certificate of
// its key, unless the host gave it, and the list of revoked ones. A report of version 2 does not name its processor. If
// its certificate does not either, both lines that made such reports are asked for, and one of the answers suffices. A
// VLEK has no URL: the provider's host gives it in the certificate table.
func Requests(ev attestation.Evidence) ([]attestation.Request, error) {
	r, err := Parse(ev.Report)
	if err != nil {
		return nil, err
	}
	lines, err := productsFor(r)
	if err != nil {
		return nil, err
	}
	kind := r.KeyInfo.SigningKey()
	if kind != VCEK && kind != VLEK {
		return nil, fail(attestation.CodeUnsigned, "key_info.signing_key", "vcek or vlek", "%s", kind)
	}
	given := r.givenBy(ev.Certificates, lines)
	switch {
	case given != "":
		lines = []Product{given}
	case r.Version < 3:
		lines = []Product{Milan, Genoa}
	}
	var out []attestation.Request
	for _, p := range lines {
		if kind == VCEK && given == "" && !r.masked() {
			out = append(out, vcekRequest(p, r))
		}
		base := fmt.Sprintf("%s/v1/%s", kind, p)
		out = append(out, attestation.Request{Kind: KindCRL, Name: base + "/crl.der", URL: kds + "/" + base + "/crl"})
	}
	return out, nil
}

// givenBy returns the line of the certificate in the host's table, if it is the one of the report's chip and level.
func (r *Report) givenBy(table []byte, lines []Product) Product {
	kind := r.KeyInfo.SigningKey()
	found, err := gather(kind, table, attestation.Collateral{})
	if err != nil {
		return ""
	}
	e, err := parseEndorsement(found.leaves[0], kind)
	if err != nil {
		return ""
	}
	for _, p := range lines {
		tcb, _ := p.TCB(r.TCB.Reported)
		named := strings.HasSuffix(e.cert.Issuer.CommonName, "-"+string(p))
		if named && e.tcb == tcb && (kind == VLEK || bytes.Equal(e.hwid, r.ChipID[:p.hwidLen()])) {
			return p
		}
	}
	return ""
}

// vcekRequest names the certificate of a chip at its reported patch level. The name is that of Trustee's offline store.
func vcekRequest(p Product, r *Report) attestation.Request {
	t, _ := p.TCB(r.TCB.Reported)
	hwid := fmt.Sprintf("%x", r.ChipID[:p.hwidLen()])
	var file, query strings.Builder
	fmt.Fprintf(&file, "bl%02d_tee%02d_snp%02d_ucode%02d", t.Bootloader, t.TEE, t.SNP, t.Microcode)
	if p == Turin {
		fmt.Fprintf(&file, "_fmc%02d", t.FMC)
		fmt.Fprintf(&query, "fmcSPL=%02d&", t.FMC)
	}
	fmt.Fprintf(&query, "blSPL=%02d&teeSPL=%02d&snpSPL=%02d&ucodeSPL=%02d", t.Bootloader, t.TEE, t.SNP, t.Microcode)
	name := fmt.Sprintf("vcek/%s/%s_vcek.der", hwid, &file)
	if r.Version < 3 {
		name = string(p) + "/" + name // the line is a guess
	}
	return attestation.Request{
		Kind: KindVCEK, Name: name, URL: fmt.Sprintf("%s/vcek/v1/%s/%s?%s", kds, p, hwid, &query),
	}
}
