"""A vasprun.xml with as much as readers need: two atoms in a cubic cell."""

from __future__ import annotations

from collections.abc import Sequence

EDGE = 8.0
"""Å."""


def vasprun(*loops: Sequence[float], nelm: int = 60, ediff: float = 1e-6, isif: int = 2) -> str:
    """One ionic step per electronic loop, which is given as the energy after each iteration, eV."""
    steps = "\n".join(_step(loop, number) for number, loop in enumerate(loops))
    return f"""<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
 <generator><i name="program" type="string">vasp </i></generator>
 <incar><i type="int" name="NELM"> {nelm}</i><i name="EDIFF"> {ediff:.8f}</i></incar>
 <kpoints>
  <varray name="kpointlist"><v> 0.0 0.0 0.0 </v></varray>
  <varray name="weights"><v> 1.0 </v></varray>
 </kpoints>
 <parameters>
  <separator name="electronic convergence">
   <i type="int" name="NELM"> {nelm}</i><i name="EDIFF"> {ediff:.8f}</i>
  </separator>
  <separator name="ionic"><i type="int" name="ISIF"> {isif}</i></separator>
 </parameters>
 <atominfo>
  <array name="atoms"><set>
   <rc><c>O </c><c> 1</c></rc>
   <rc><c>H </c><c> 2</c></rc>
  </set></array>
 </atominfo>
 <structure name="initialpos">{_structure(0)}</structure>
{steps}
</modeling>
"""


def _step(energies: Sequence[float], number: int) -> str:
    loop = "\n".join(f"<scstep>{_energy(energy)}</scstep>" for energy in energies)
    return f"""<calculation>
{loop}
<structure>{_structure(number)}</structure>
<varray name="forces"><v> 0.1 0.2 0.3 </v><v> -0.1 -0.2 -0.3 </v></varray>
<varray name="stress"><v> 5.0 0.0 0.0 </v><v> 0.0 6.0 0.0 </v><v> 0.0 0.0 7.0 </v></varray>
{_energy(energies[-1])}
</calculation>"""


def _energy(value: float) -> str:
    names = ("e_fr_energy", "e_wo_entrp", "e_0_energy")
    numbers = (value, value + 0.2, value + 0.1)
    fields = (f'<i name="{n}"> {v:.8f} </i>' for n, v in zip(names, numbers, strict=True))
    return f"<energy>{''.join(fields)}</energy>"


def _structure(number: int) -> str:
    vectors = "".join(
        f"<v> {' '.join(str(EDGE if i == j else 0.0) for j in range(3))} </v>" for i in range(3)
    )
    return f"""<crystal><varray name="basis">{vectors}</varray></crystal>
<varray name="positions"><v> 0.0 0.0 0.0 </v><v> {0.12 + 0.001 * number} 0.0 0.0 </v></varray>"""
