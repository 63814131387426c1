// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coco-shim/coco/attestation"
)

// verification is the state of one call of Verify. Each step reads what the steps before it have proven.
type verification struct {
	evidence   attestation.Evidence
	collateral attestation.Collateral
	want       Expectations
	trail      attestation.Trail

	quote    *Quote
	pck      *x509.Certificate
	platform *platform
	rootCRL  *x509.RevocationList
	info     tcbInfo
	verdict  verdict
	// moduleStatus are the statuses of the module at the launch and now, by the names of their SVNs.
	moduleStatus map[string]Status
	events       []any

	expired     bool      // a document was used after its end
	earliestEnd time.Time // of all documents and certificates
}

// Verify returns what the evidence proves, or the first check that does not hold as an *attestation.Failure.
func Verify(e attestation.Evidence, c attestation.Collateral, want Expectations) (*attestation.Claims, error) {
	v := &verification{evidence: e, collateral: c, want: want, moduleStatus: map[string]Status{}}
	for _, step := range []func() error{
		v.inputs, v.checkPlatform, v.checkSignatures, v.checkTCBInfo, v.checkQE, v.checkModule, v.checkStatus,
		v.checkAttributes, v.checkExpectations, v.checkEventLog,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return v.trail.Claim(v.claims()), nil
}

func (v *verification) root() *ecdsa.PublicKey { return v.want.root() }

func (v *verification) inputs() error {
	if v.evidence.Type != attestation.TDX {
		return unsupported("type", string(attestation.TDX), v.evidence.Type)
	}
	if v.collateral.Now.IsZero() {
		return attestation.Fail(attestation.CodeExpectation, "time", "the time of the verification", "none", nil)
	}
	var err error
	v.quote, err = Parse(v.evidence.Report)
	return err
}

// checkPlatform checks the certificates of the platform's key, and that none of them is revoked.
func (v *verification) checkPlatform() error {
	certs, err := readChain("pck_certificate", v.quote.chain)
	if err != nil {
		return err
	}
	if err := v.checkChain("pck_certificate", certs, []string{cnPCK}, []string{cnPlatformCA, cnProcessorCA}); err != nil {
		return err
	}
	v.pck = certs[0]
	if v.rootCRL, err = v.findCRL(KindRootCRL, certs[2]); err != nil {
		return err
	}
	if err := v.notRevoked("pck_certificate[1]", certs[1], v.rootCRL); err != nil {
		return err
	}
	list, err := v.findCRL(KindPCKCRL, certs[1])
	if err != nil {
		return err
	}
	if err := v.notRevoked("pck_certificate[0]", certs[0], list); err != nil {
		return err
	}
	v.platform, err = readPlatform(v.pck)
	return err
}

// checkSignatures checks the platform's signature of the quoting enclave's report, the attestation key that the report
// names, and that key's signature of the quote.
func (v *verification) checkSignatures() error {
	q := v.quote
	pck, ok := v.pck.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return unsupported("pck_certificate[0].key", "a key of ECDSA", v.pck.PublicKeyAlgorithm)
	}
	err := verifyRaw(pck, q.qeSigned, q.qeSig)
	if err := v.signature("qe_report.signature", "one of the platform's key", err); err != nil {
		return err
	}
	sum := sha256.Sum256(append(bytes.Clone(q.key), q.qeAuth...))
	want := append(sum[:], make([]byte, 32)...)
	if err := v.trail.Check(bytes.Equal(want, q.qe.reportData), attestation.Check{
		Code: attestation.CodeSignature, Field: "qe_report.report_data", Expected: hex.EncodeToString(want),
		Got: hex.EncodeToString(q.qe.reportData),
	}); err != nil {
		return err
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, q.key...))
	if err != nil {
		return attestation.Fail(attestation.CodeMalformed, "attestation key", "a point of P-256", hex.EncodeToString(q.key),
			err)
	}
	return v.signature("quote.signature", "one of the attestation key", verifyRaw(key, q.signed, q.signature))
}

func (v *verification) signature(field, expected string, err error) error {
	if err != nil {
		return attestation.Fail(attestation.CodeSignature, field, expected, "another one", err)
	}
	return v.trail.Check(true, attestation.Check{
		Code: attestation.CodeSignature, Field: field, Expected: expected,
		Got: "it is",
	})
}

// checkTCBInfo finds Intel's TCB levels for this kind of platform and the level that the platform reaches.
func (v *verification) checkTCBInfo() error {
	docs := v.collateral.All(KindTCBInfo)
	var others []string
	for _, d := range docs {
		var info tcbInfo
		s, err := openDocument(d, "tcbInfo", &info)
		if err != nil {
			return err
		}
		if !bytes.Equal(info.FMSPC, v.platform.fmspc) {
			others = append(others, hex.EncodeToString(info.FMSPC))
			continue
		}
		v.info = info
		if err := v.checkDocument(KindTCBInfo, s, info.IssueDate, info.NextUpdate); err != nil {
			return err
		}
		return v.readTCBInfo()
	}
	return attestation.Fail(attestation.CodeCollateralMissing, string(KindTCBInfo),
		"TCB info of platform "+v.platform.fmspc.String(),
		fmt.Sprintf("%d of others (%s)", len(docs), strings.Join(others, ", ")), nil)
}

func (v *verification) readTCBInfo() error {
	i := v.info
	field := string(KindTCBInfo)
	if i.ID != "TDX" || i.Version != 3 || i.Type != 0 {
		return attestation.Fail(attestation.CodeCollateralInvalid, field, "TDX, version 3, type 0",
			fmt.Sprintf("%q, version %d, type %d", i.ID, i.Version, i.Type), nil)
	}
	if !bytes.Equal(i.PCEID, v.platform.pceID) {
		return attestation.Fail(attestation.CodeCollateralInvalid, field+".pceId", v.platform.pceID.String(),
			hex.EncodeToString(i.PCEID), nil)
	}
	if err := v.evaluation(field, i.Evaluation); err != nil {
		return err
	}
	return v.eachSVN(func(name string, svn [16]byte) error {
		l, err := platformLevel(i.Levels, v.platform, svn)
		if err != nil {
			return attestation.Fail(attestation.CodeTCBStatus, name, "a level of Intel's list that the platform reaches",
				fmt.Sprintf("%x, SGX %x, PCE %d", svn, v.platform.svn, v.platform.pceSVN), err)
		}
		v.verdict = append(v.verdict, l)
		return nil
	})
}

// eachSVN calls f for the TCB under which the TD was launched, and for that under which it runs now: the host may
// update
// the module below a TD, and what an old module let happen stays.
func (v *verification) eachSVN(f func(name string, svn [16]byte) error) error {
	if err := f("tcb_svn", v.quote.Body.TCBSVN); err != nil {
		return err
	}
	if m := v.quote.Body.Module15; m != nil {
		return f("tee_tcb_svn2", m.TCBSVN2)
	}
	return nil
}

// checkDocument checks a document's signature, its signer's certificates, and its time.
func (v *verification) checkDocument(k attestation.Kind, s *signedDocument, issued, next time.Time) error {
	field := string(k)
	if len(s.chain) == 0 {
		for _, d := range v.collateral.All(KindSigningChain) {
			s.chain = d.Data
		}
	}
	if len(s.chain) == 0 {
		return attestation.Fail(attestation.CodeCollateralMissing, field+".signer",
			"the certificates of the signer of "+s.name, "none", nil)
	}
	certs, err := readChain(field+".signer", s.chain)
	if err != nil {
		return attestation.Fail(attestation.CodeCollateralInvalid, field+".signer", "certificates in PEM", s.name, err)
	}
	if err := v.checkChain(field+".signer", certs, []string{cnTCBSigning}); err != nil {
		return err
	}
	if err := v.notRevoked(field+".signer", certs[0], v.rootCRL); err != nil {
		return err
	}
	key, ok := certs[0].PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return unsupported(field+".signer", "a key of ECDSA", certs[0].PublicKeyAlgorithm)
	}
	if err := verifyRaw(key, s.signed, s.signature); err != nil {
		return attestation.Fail(attestation.CodeCollateralInvalid, field+".signature", "one of Intel's key", "another one",
			err)
	}
	return v.validity(field, issued, next)
}

func (v *verification) evaluation(field string, n int) error {
	return v.trail.Check(n >= v.want.TCB.MinEvaluation, attestation.Check{
		Code: attestation.CodeOutdated, Field: field + ".tcbEvaluationDataNumber",
		Expected: fmt.Sprintf("at least %d", v.want.TCB.MinEvaluation), Got: fmt.Sprint(n),
	})
}

// checkQE compares the quoting enclave's report with its identity.
func (v *verification) checkQE() error {
	docs := v.collateral.All(KindQEIdentity)
	if len(docs) == 0 {
		return attestation.Fail(attestation.CodeCollateralMissing, string(KindQEIdentity),
			"the identity of Intel's quoting enclave", "none", nil)
	}
	var id enclaveIdentity
	s, err := openDocument(docs[0], "enclaveIdentity", &id)
	if err != nil {
		return err
	}
	if err := v.checkDocument(KindQEIdentity, s, id.IssueDate, id.NextUpdate); err != nil {
		return err
	}
	if id.ID != "TD_QE" || id.Version != 2 {
		return attestation.Fail(attestation.CodeCollateralInvalid, string(KindQEIdentity), "TD_QE, version 2",
			fmt.Sprintf("%q, version %d", id.ID, id.Version), nil)
	}
	if err := v.evaluation(string(KindQEIdentity), id.Evaluation); err != nil {
		return err
	}
	qe := v.quote.qe
	for _, c := range []struct {
		field           string
		want, mask, got []byte
	}{
		{"mrsigner", id.MRSigner, nil, qe.mrSigner},
		{"isvprodid", fmt.Append(nil, id.ProdID), nil, fmt.Append(nil, qe.prodID)},
		{"miscselect", id.MiscSelect, id.MiscMask, v.quote.qeSigned[16:20]},
		{"attributes", id.Attributes, id.AttributesMask, qe.attributes},
	} {
		if err := v.identical(attestation.CodeQEIdentity, "qe_report."+c.field, c.want, c.mask, c.got); err != nil {
			return err
		}
	}
	l, err := svnLevel(id.Levels, int(qe.svn))
	if err != nil {
		return attestation.Fail(attestation.CodeTCBStatus, "qe_report.isvsvn", "a level of the quoting enclave's identity",
			fmt.Sprint(qe.svn), err)
	}
	v.verdict = append(v.verdict, l)
	return nil
}

// identical compares the bits of a mask; no mask compares all.
func (v *verification) identical(code attestation.Code, field string, want, mask, got []byte) error {
	c := attestation.Check{Code: code, Field: field, Expected: hex.EncodeToString(want), Got: hex.EncodeToString(got)}
	if mask == nil {
		return v.trail.Check(len(want) > 0 && bytes.Equal(want, got), c)
	}
	c.Expected += " in the bits " + hex.EncodeToString(mask)
	if len(mask) != len(got) || len(want) != len(got) {
		return v.trail.Check(false, c)
	}
	masked := make([]byte, len(got))
	for i := range got {
		masked[i] = got[i] & mask[i]
	}
	return v.trail.Check(bytes.Equal(masked, want), c)
}

// checkModule compares the TDX module's measurements with the identity of its version, and looks for its level.
func (v *verification) checkModule() error {
	b := v.quote.Body
	id := v.info.Module
	if moduleVersion(b.TCBSVN) > 0 {
		var err error
		if id, err = v.findModule("tcb_svn", b.TCBSVN); err != nil {
			return err
		}
	}
	if err := v.identical(attestation.CodeTDXModule, "mrsigner_seam", id.MRSigner, nil, b.MRSignerSeam); err != nil {
		return err
	}
	attributes := binary.LittleEndian.AppendUint64(nil, b.SeamAttributes) // Intel's document has the bytes of the quote
	if err := v.identical(
		attestation.CodeTDXModule, "seam_attributes", id.Attributes, id.AttributesMask, attributes,
	); err != nil {
		return err
	}
	return v.eachSVN(func(name string, svn [16]byte) error {
		if moduleVersion(svn) == 0 {
			return nil // the platform's level covers it
		}
		id, err := v.findModule(name, svn)
		if err != nil {
			return err
		}
		l, err := svnLevel(id.Levels, moduleLevel(svn))
		if err != nil {
			return attestation.Fail(attestation.CodeTCBStatus, name+".module", "a level of "+id.ID,
				fmt.Sprint(moduleLevel(svn)), err)
		}
		v.verdict = append(v.verdict, l)
		v.moduleStatus[name] = l.Status
		return nil
	})
}

// findModule returns the identity of the module's version.
func (v *verification) findModule(field string, svn [16]byte) (moduleIdentity, error) {
	name := fmt.Sprintf("TDX_%02x", moduleVersion(svn))
	i := slices.IndexFunc(v.info.Modules, func(m moduleIdentity) bool { return strings.EqualFold(m.ID, name) })
	if i < 0 {
		return moduleIdentity{}, attestation.Fail(attestation.CodeTDXModule, field+".module",
			"a version in Intel's TCB info", name, nil)
	}
	return v.info.Modules[i], nil
}

// checkStatus judges the levels of platform, module and quoting enclave together.
func (v *verification) checkStatus() error {
	for _, l := range v.verdict {
		if !l.Status.Known() {
			return attestation.Fail(attestation.CodeCollateralInvalid, "tcb_status", "a status of Intel's service",
				fmt.Sprintf("%q", l.Status), nil)
		}
	}
	status, policy := v.verdict.status(), v.want.TCB
	accepted := append([]Status{UpToDate}, policy.Statuses...)
	texts := make([]string, len(accepted))
	for i, s := range accepted {
		texts[i] = string(s)
	}
	advisories := v.verdict.advisories()
	got := string(status)
	if len(advisories) > 0 {
		got += " (" + strings.Join(advisories, ", ") + ")"
	}
	code := attestation.CodeTCBStatus
	if status == Revoked {
		code = attestation.CodeRevoked
	}
	if err := v.trail.Check(status != Revoked && slices.Contains(accepted, status), attestation.Check{
		Code: code, Field: "tcb_status", Expected: strings.Join(texts, " or "), Got: got,
	}); err != nil {
		return err
	}
	for _, a := range policy.RefuseAdvisories {
		hit := slices.ContainsFunc(advisories, func(b string) bool { return strings.EqualFold(a, b) })
		if err := v.trail.Check(!hit, attestation.Check{
			Code: attestation.CodeAdvisory, Field: "advisory_ids", Expected: "not " + a,
			Got: "[" + strings.Join(advisories, ", ") + "]",
		}); err != nil {
			return err
		}
	}
	if policy.MinDate.IsZero() {
		return nil
	}
	date := v.verdict.date()
	return v.trail.Check(!date.Before(policy.MinDate), attestation.Check{
		Code: attestation.CodeOutdated, Field: "tcb_date", Expected: "not before " + stamp(policy.MinDate), Got: stamp(date),
	})
}
